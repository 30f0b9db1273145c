"""American words in another accent: the weights of g2p-en, without backprop.

    pip install 'bpfree[pretrained]' && pip install --no-deps g2p-en==2.1.0
    bpfree-train --config=config.py --workdir=runs/feedback

The net learns to say R before vowels only, on 16,000 words; `right` is the share of
words whose phonemes are all right. Arms: learned feedback, which moves all parameters;
`config.py:np` (node perturbation of adapters; the readout takes the loss's own
derivative), `config.py:wp` (weight perturbation of rank 1, all parameters),
`config.py:bp` (backprop, the twin), `config.py:readout` (the last layer alone, the
control) and `config.py:scratch` (backprop from random weights).
"""

from ml_collections import ConfigDict

_NOISE = {"num_samples": 2, "nodes": ("encoder*", "decoder*")}
_ARMS = {
    "feedback": ("learned_feedback", {"fit_stride": 2}),
    "np": ("node_perturbation", _NOISE),
    "wp": ("weight_perturbation", {"num_samples": 8, "rank": 1}),
    "bp": ("backprop", {}),
    "readout": ("backprop", {}),
    "scratch": ("backprop", {}),
}
_FROZEN = ("encoder_embedding", "encoder", "decoder_embedding", "decoder")
_ADAPTERS = tuple(
    f"{net}_{kind}_adapter"
    for net in ("encoder", "decoder")
    for kind in ("input", "state")
)


def get_config(arg: str = "feedback") -> ConfigDict:
    """arg: an arm."""
    if arg not in _ARMS:
        raise ValueError(f"unknown argument {arg!r}; the arms are {', '.join(_ARMS)}")
    name, kwargs = _ARMS[arg]
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "./port.py:words", "accent": "non-rhotic"}
    config.model = {"name": "./port.py:Model", "rank": 4 if arg == "np" else 0}
    config.loss = "./port.py:cross_entropy"
    config.metrics = ({"name": "./port.py:right", "lower_is_better": False}, "loss")
    if arg != "scratch":
        config.pretrained = {"name": "./port.py:load", "fresh": ()}
    if arg == "np":
        config.pretrained.fresh = _ADAPTERS
    config.frozen = _FROZEN if arg in ("np", "readout") else ()
    config.batch_size = 32
    config.num_steps = 200
    config.log_every = 50
    config.checkpoint_every = 200
    config.estimator = dict(kwargs)
    config.schedule = {"init_value": 3e-3, "decay_steps": config.get_ref("num_steps")}
    adam = ("adam", {"learning_rate": ("cosine_decay_schedule", "schedule")})
    config.chain = ((name, "estimator"), adam)
    return config.lock()
