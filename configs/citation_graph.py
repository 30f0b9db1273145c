"""Cora and Citeseer by a graph convolutional network without backpropagation.

    bpfree-train --config=configs/citation_graph.py --workdir=runs/cora

Two graph convolutions of 16 units on the whole graph, at every step on all labelled
nodes. Node perturbation, one layer at a time; a hidden unit of a graph node answers for
the losses of its neighbours only.

Data: `citation_graph.py:cora` (the default) and `citation_graph.py:citeseer`. With each
of them the arms: `citation_graph.py:cora_total` (every unit answers for all losses),
`citation_graph.py:cora_bp` (backprop, the twin), `citation_graph.py:cora_frozen`
(backprop on the last layer alone, the control); and `citation_graph.py:smoke`, one step
of a small net on a made-up graph of this size. Seeds: `--config.seed=1`.

The run reads the folder `planetoid` of the directory that BPFREE_DATA_DIR names.

Test accuracy, three seeds of each arm: `results/architectures.json`, written by
`python scripts/launched.py --table=architectures`; 10 to 45 s each on one
CPU core beside other jobs. The rate of the frozen arm, 1, was chosen on validation; else
nothing was tuned.
"""

from ml_collections import ConfigDict

_LABELLED = {"cora": 140, "citeseer": 120}
_ARMS = ("", "total", "bp", "frozen")


def get_config(arg: str = "") -> ConfigDict:
    """A graph by node perturbation; arg: a set, with an arm behind it, or "smoke"."""
    graph, _, arm = ("cora" if arg in ("", "smoke") else arg).partition("_")
    if graph not in _LABELLED or arm not in _ARMS:
        raise ValueError(
            f"unknown argument {arg!r}; the choices are cora, citeseer, each alone or "
            "with _total, _bp or _frozen behind it, and smoke"
        )
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": graph, "dir": ""}
    config.model = {"name": "gcn", "graph": graph, "hidden": (16,), "dir": ""}
    config.mesh = ""
    config.batch_size = _LABELLED[graph]
    config.num_steps = 200
    config.log_every = 10
    config.checkpoint_every = 100
    config.diagnostics = {"every": 0, "repeats": 8}
    rate = 1.0 if arm == "frozen" else 1e-2
    adam = ("adamw", {"learning_rate": rate, "weight_decay": 0.05})
    if arm in ("", "total"):
        name = "node_perturbation"
        config.estimator = {"num_samples": 64, "sigma": 1e-3, "layerwise": True}
    else:
        name = "backprop"
        config.estimator = {}
    if arm == "":
        config.estimator.credit = ("models.gcn.local_credit", {"graph": graph})
    if arm == "frozen":
        config.frozen = ("Dense_0",)
    config.chain = ((name, "estimator"), adam)
    if arg == "smoke":
        config.data.dir = config.model.dir = "made-up"
        config.model.hidden = (4,)
        options = {"graph": graph, "dir": "made-up"}
        config.estimator.credit = ("models.gcn.local_credit", options)
        config.estimator.num_samples = 2
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()
