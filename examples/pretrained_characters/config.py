"""From titles of web pages to Ambrose Bierce: weights of textgenrnn, without backprop.

    pip install 'bpfree[pretrained]' && pip install --no-deps textgenrnn==2.0.0
    apt-get install dict-devil
    bpfree-train --config=config.py --workdir=runs/feedback

Arms: learned feedback, which moves all parameters; `config.py:np` (node perturbation of
adapters and attention; the readout takes the loss's own derivative), `config.py:wp`
(weight perturbation of rank 1, all parameters), `config.py:bp` (backprop, the twin),
`config.py:readout` (the last layer alone, the control) and `config.py:scratch` (backprop
from random weights).
Another text: `--config.data.path=FILE`.
"""

from ml_collections import ConfigDict

_NOISE = {"num_samples": 2, "nodes": ("rnn_*", "attention")}
_ARMS = {
    "feedback": ("learned_feedback", {"fit_stride": 2}),
    "np": ("node_perturbation", _NOISE),
    "wp": ("weight_perturbation", {"num_samples": 8, "rank": 1}),
    "bp": ("backprop", {}),
    "readout": ("backprop", {}),
    "scratch": ("backprop", {}),
}
_BODY = ("embedding", "rnn_1", "rnn_2")
_FROZEN = {"np": _BODY, "readout": (*_BODY, "attention")}


def get_config(arg: str = "feedback") -> ConfigDict:
    """arg: an arm."""
    if arg not in _ARMS:
        raise ValueError(f"unknown argument {arg!r}; the arms are {', '.join(_ARMS)}")
    name, kwargs = _ARMS[arg]
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "./port.py:text", "path": "/usr/share/dictd/devil.dict.dz"}
    config.model = {"name": "./port.py:Model", "rank": 4 if arg == "np" else 0}
    config.metrics = ({"name": "./port.py:bits", "lower_is_better": True},)
    if arg != "scratch":
        config.pretrained = {"name": "./port.py:load", "fresh": ()}
    if arg == "np":
        config.pretrained.fresh = ("rnn_1_adapter", "rnn_2_adapter")
    config.frozen = _FROZEN.get(arg, ())
    config.batch_size = 16
    config.num_steps = 200
    config.log_every = 50
    config.checkpoint_every = 200
    config.estimator = dict(kwargs)
    config.schedule = {"init_value": 3e-3, "decay_steps": config.get_ref("num_steps")}
    adam = ("adam", {"learning_rate": ("cosine_decay_schedule", "schedule")})
    config.chain = ((name, "estimator"), adam)
    return config.lock()
