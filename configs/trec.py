"""TREC: what kind of thing a question asks for, by a recurrent net without BPTT.

    bpfree-train --config=configs/trec.py --workdir=runs/trec

A question's first 16 words, as hashed numbers, go through an embedding of 64, a layer of
64 cells and a dense layer. Node perturbation credits the noise at every step by the loss
at the end; nothing runs backwards through time.

Cells: `trec.py:gru` (the default), `trec.py:rnn`, `trec.py:lstm`. With each of them the
arms: `trec.py:gru_dnp` (node perturbation, decorrelated), `trec.py:gru_feedback` (learned
feedback), `trec.py:gru_bp` (backprop through time, the twin), `trec.py:gru_dbp` (the
same, decorrelated), `trec.py:gru_frozen` (backprop on the last layer alone, the control);
and `trec.py:smoke`, one step of a small cell on made-up data. Seeds: `--config.seed=1`.

The run reads the folder `text_small` of the directory that BPFREE_DATA_DIR names.

Test accuracy, three seeds of each arm: `results/architectures.json`, written by
`python scripts/launched.py --table=architectures`; 10 to 80 s each on TREC,
up to 4 minutes on AG News. Not in that table: on TREC gru_dnp .793 +- .010, gru_dbp .847
+- .001; on AG News gru_dnp .710 +- .020, gru_dbp .748 +- .008.

AG News (7,600 test items, 4,999 for training) by the same nets: with
--config.data.name=ag_news_5k --config.data.length=32, which reads the folder `ag_news`.

Gradients of feedback and bp are clipped to length 1: without it the LSTM's learned
feedback on AG News ended at .395 with seed 0. Nothing else was tuned.
"""

from ml_collections import ConfigDict

_CELLS = {"gru": "GRUCell_0", "rnn": "SimpleCell_0", "lstm": "LSTMCell_0"}
_NOISE = {"num_samples": 32, "sigma": 0.01}
_ARMS = {
    "": ("node_perturbation", _NOISE),
    "dnp": ("node_perturbation", _NOISE),
    "feedback": ("learned_feedback", {}),
    "bp": ("backprop", {}),
    "dbp": ("backprop", {}),
    "frozen": ("backprop", {}),
}


def get_config(arg: str = "") -> ConfigDict:
    """A cell by node perturbation; arg: a cell, with an arm behind it, or "smoke"."""
    cell, _, arm = ("gru" if arg in ("", "smoke") else arg).partition("_")
    if cell not in _CELLS or arm not in _ARMS:
        raise ValueError(
            f"unknown argument {arg!r}; the choices are gru, rnn, lstm, each alone or "
            "with _dnp, _feedback, _bp, _dbp or _frozen behind it, and smoke"
        )
    name, kwargs = _ARMS[arm]
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "trec", "length": 16, "vocabulary": 4096, "dir": ""}
    config.model = {"name": "recurrent", "cell": cell, "hidden": 64}
    config.model.update({"vocabulary": 4096, "features": 64})
    config.mesh = ""
    config.batch_size = 64
    config.num_steps = 2000
    config.log_every = 100
    config.checkpoint_every = 1000
    config.diagnostics = {"every": 0, "repeats": 8}
    config.estimator = kwargs
    config.schedule = {"init_value": 3e-3, "decay_steps": config.get_ref("num_steps")}
    adam = ("adam", {"learning_rate": ("cosine_decay_schedule", "schedule")})
    if arm == "frozen":
        config.frozen = ("Embed_0", _CELLS[cell])
    config.chain = ((name, "estimator"), adam)
    if arm in ("feedback", "bp"):
        clip = ("clip_by_global_norm", {"max_norm": 1.0})
        config.chain = ((name, "estimator"), clip, adam)
    if arm in ("dnp", "dbp"):
        config.decorrelation = {"inner": adam}
        config.chain = ((name, "estimator"), ("decorrelate", "decorrelation"))
    if arg == "smoke":
        config.data.dir = "made-up"
        config.data.length = 4
        config.model.update({"hidden": 4, "features": 4})
        config.batch_size = 8
        config.estimator.num_samples = 2
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()
