"""Configs: every file runs its smoke variant, and every mistake says what to do."""

import copy
import importlib.util
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from bpfree.program.trace import trace
from bpfree.training import ConfigError, chain, config, fit, job
from tests.statistics import assert_close

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Optax's own Adam mixes int32 and int64 under x64; strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def smoke():
    return (
        load(next(p for p in FILES if p.stem == "digits")).get_config("smoke").to_dict()
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_smoke_variant_trains_one_step(path, tmp_path):
    result = fit(load(path).get_config("smoke"), tmp_path)
    assert result.steps == 1
    assert 0 <= result.test["accuracy"] <= 1


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_configs_are_locked_documented_and_refuse_unknown_arguments(path):
    module = load(path)
    made = module.get_config()
    assert isinstance(made, ConfigDict) and made.is_locked
    assert "bpfree-train --config=" in module.__doc__
    with pytest.raises(ValueError, match="'nonsense'.*choices are.*smoke"):
        module.get_config("nonsense")
    config.as_json(made)  # plain values


@pytest.mark.parametrize("arg", ["", "np", "bp"])
def test_digits_variants_can_be_built(arg):
    path = next(p for p in FILES if p.stem == "digits")
    made = load(path).get_config(arg)
    job.prepare(config.read(made))


def test_large_seeds_do_not_wrap():
    small, large = (
        job.prepare(config.read(smoke() | {"seed": s})) for s in (1, 2**32 + 1)
    )
    kernels = (made.params["Dense_0"]["kernel"] for made in (small, large))
    assert not (next(kernels) == next(kernels)).any()
    assert (small.task.keys.order != large.task.keys.order).all()


def test_schedules_follow_an_overridden_number_of_steps():
    path = next(p for p in FILES if p.stem == "digits")
    made = load(path).get_config()
    made.num_steps = 77
    assert made.to_dict()["schedule"]["decay_steps"] == 77


# --------------------------------------------------------------------------- objective


def prepared(stem, **objective):
    made = load(next(p for p in FILES if p.stem == stem)).get_config("smoke").to_dict()
    if objective.get("losses") == "example":
        made["estimator"].pop("credit")
    return job.prepare(config.read({**made, "objective": objective}))


def test_a_loss_for_each_step_has_the_mean_of_the_losses_of_examples():
    each, mean = (prepared("char_transformer", losses=n) for n in ("step", "example"))
    of_steps = each.loss_fn(each.params, each.batch)
    assert of_steps.shape == each.batch["label"].shape == (8, 4)
    assert_close(of_steps.mean(1), mean.loss_fn(mean.params, mean.batch), rtol=1e-6)


@pytest.mark.parametrize("noise, shared", [("preactivation", False), ("weight", True)])
def test_nodes_stand_where_the_objective_says(noise, shared):
    ready = prepared("digits", noise=noise)
    traced = trace(ready.loss_fn, ready.params, ready.batch)
    assert {site.batch_axis is None for site in traced.nodes} == {shared}


def test_a_model_with_an_objective_takes_no_other():
    with pytest.raises(ConfigError, match="this model has an objective of its own"):
        prepared("ep_mnist", noise="weight")


# ---------------------------------------------------------------------------- mistakes


def link(position, name, kwargs):
    def edit(c):
        links = list(c["chain"])
        links[position] = (name, kwargs)
        c["chain"] = tuple(links)
        named = [kwargs for _, kwargs in links]
        for section in ("estimator", "schedule"):
            if section not in str(named):
                del c[section]  # an unused section would be the first mistake told

    return edit


def put(*path_and_value):
    *path, last, value = path_and_value

    def edit(c):
        for key in path:
            c = c[key]
        c[last] = value

    return edit


MISTAKES = {
    "misspelt entry": (put("bach_size", 3), "'bach_size'.*'batch_size'"),
    "unused section": (put("spare", {"a": 1}), "'spare'"),
    "missing entry": (lambda c: c.pop("seed"), "seed is missing; required.*num_steps"),
    "missing chain": (lambda c: c.pop("chain"), "config.chain is missing"),
    "type of chain": (put("chain", "adam"), "chain='adam' has the wrong type"),
    "two estimators": (
        link(1, "node_perturbation", {}),
        r"chain\[1\]: 'node_perturbation' would add a second gradient",
    ),
    "type of entry": (put("num_steps", "many"), "num_steps='many' has the wrong type"),
    "count": (put("batch_size", 0), "batch_size=0 must be at least 1"),
    "negative rate": (
        put("schedule", "init_value", -0.1),
        "config.schedule.init_value=-0.1 must",
    ),
    "negative rate in a link": (
        link(1, "adam", {"learning_rate": -0.1}),
        r"config.chain\[1\]\[1\].learning_rate=-0.1 must",
    ),
    "not a number": (
        put("schedule", "init_value", float("nan")),
        "init_value=nan is not",
    ),
    "infinite rate": (
        put("schedule", "init_value", float("inf")),
        "=inf must not be inf",
    ),
    "negative seed": (put("seed", -1), "config.seed=-1 must not be negative"),
    "too many samples": (put("estimator", "num_samples", 3 * 10**9), "num_samples=3000"),
    "no units": (put("model", "hidden", (0,)), r"'hidden': \(0,\).*a size of 0"),
    "too large a batch": (put("batch_size", 5000), "5000 exceeds the 1085"),
    "checkpoint cadence": (put("log_every", 2), "must be a multiple of"),
    "data name": (put("data", "name", "digit"), "'digit'.*Did you mean 'digits'"),
    "data argument": (put("data", "shft", 1.0), "'shft'.*'shift'"),
    "data type": (put("data", "shift", "far"), "shift='far' is a str"),
    "model name": (put("model", "name", "mpl"), "'mpl'.*'mlp'"),
    "model argument": (put("model", "hiden", 1), "'hiden'.*'hidden'"),
    "activation": (put("model", "activation", "rlu"), "'rlu' is unknown.*relu"),
    "estimator name": (
        link(0, "likelihod_ratio", {}),
        r"chain\[0\].*'likelihod_ratio'.*Did you mean 'likelihood_ratio'",
    ),
    "no estimator": (link(0, "sgd", {"learning_rate": 0.1}), "begin with an estimator"),
    "objective entry": (put("objective", {"loss": "step"}), "'loss'.*'losses'"),
    "objective choice": (
        put("objective", {"losses": "steps"}),
        "losses 'steps' is unknown.*Did you mean 'step'",
    ),
    "objective list": (put("objective", {"noise": ["auto"]}), "noise .*is unknown"),
    "frozen is text": (put("frozen", ["Dense_0", 1]), "frozen=.*a list is wanted"),
    "frozen in a list": (put("frozen", [["Dense_0"]]), "frozen=.*a list is wanted"),
    "mesh": (put("mesh", 8), "mesh=8.*such as 'sample:4,data:2'"),
    "repeats": (put("diagnostics", {"repeats": -1}), "diagnostics.repeats=-1"),
    "keys": (put("spare", {1: 2, "a": 3}), "config: .*keys"),
    "objective type": (put("objective", "step"), "objective='step' has the wrong type"),
    "one label": (put("objective", {"losses": "step"}), r"labels \(B, T\).*\(8,\)"),
    "optimiser name": (link(1, "adm", {}), r"chain\[1\].*'adm'.*'adam'"),
    "optimiser argument": (link(1, "adam", {"lr": 0.1}), "'lr'.*learning_rate"),
    "missing argument": (link(1, "adam", {}), r"chain\[1\].*missing.*learning_rate"),
    "optimiser type": (
        link(1, "adam", {"learning_rate": "big"}),
        "learning_rate='big' is a str",
    ),
    "section": (link(1, "adam", "optimiser"), r"chain\[1\].*must be a pair.*estimator"),
    "no transformation": (link(1, "huber_loss", {}), r"chain\[1\]"),
    "a schedule as a link": (
        link(1, "constant_schedule", {"value": 0.1}),
        "not a gradient transformation.*adam",
    ),
    "schedule name": (
        link(1, "adam", {"learning_rate": ("cosine_decay", {})}),
        "learning_rate.*'cosine_decay'.*'cosine_decay_schedule'",
    ),
    "estimator argument": (put("estimator", "num_sample", 4), "'num_samples'"),
    "estimator type": (
        put("estimator", "num_samples", 4.5),
        "num_samples=4.5 is a float",
    ),
    "estimator choice": (
        put("estimator", "pairing", "dirty"),
        "pairing 'dirty' is unknown.*clean, noisy",
    ),
    "partition labels": (
        link(1, "partition", {"transforms": {}, "param_labels": {"Dens": "a"}}),
        "does not run on this model",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_anything_is_compiled(mistake, tmp_path, monkeypatch):
    edit, message = MISTAKES[mistake]
    broken = copy.deepcopy(smoke())
    edit(broken)
    compiled = []
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *a, **k: compiled.append(1))
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        fit(broken, tmp_path / "run")
    assert not compiled and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------- chain


def test_nested_pairs_sections_and_dotted_names():
    def loss_fn(params, batch):
        raise AssertionError("not called when the chain is made")

    links = [
        ("likelihood_ratio", "estimator"),
        ("contrib.muon", {"learning_rate": ("join_schedules", "joined")}),
        ("MultiSteps", {"opt": ("sgd", {"learning_rate": 0.1}), "every_k_schedule": 2}),
    ]
    joined = {
        "schedules": [
            ("constant_schedule", {"value": 0.1}),
            ("linear_schedule", "linear"),
        ],
        "boundaries": [5],
    }
    linear = {"init_value": 0.1, "end_value": 0.0, "transition_steps": 10}
    sections = {"estimator": {"num_samples": 6}, "joined": joined, "linear": linear}
    built = chain.build(links, sections, loss_fn, seed=0)
    assert built.num_samples == 6
    assert built.transformation.init({"w": jax.numpy.zeros((2, 2))})


def test_a_chain_inside_a_chain():
    inner = ("chain", [("clip_by_global_norm", {"max_norm": 1.0}), ("sgd", "sgd")])
    links = [
        ("node_perturbation", {"num_samples": 4}),
        ("MultiSteps", {"opt": inner, "every_k_schedule": 2}),
    ]
    sections = {"sgd": {"learning_rate": 0.1}}
    built = chain.build(links, sections, lambda params, batch: batch @ params["w"], 0)
    assert built.num_samples == 4
    assert built.transformation.init({"w": jax.numpy.zeros((2,))})


def test_two_names_are_no_pair():
    sections = {"estimator": {"nodes": ("Dense_0", "Dense_1")}}
    built = chain.build([("node_perturbation", "estimator")], sections, lambda p, b: p, 0)
    assert built.num_samples == 32


def test_differences_name_the_keys():
    old = {"a": 1, "s": {"x": [1, 2], "y": 2.0}, "log_every": 1, "gone": 0}
    new = {"a": 1, "s": {"x": [1, 3], "y": 2}, "log_every": 5}
    assert config.differences(old, old) == []
    assert sorted(config.differences(old, new)) == [
        "config.gone",
        "config.s.x",
        "config.s.y",
    ]
