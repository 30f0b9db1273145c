"""Cost of one update of each estimator, from one process.

    python scripts/benchmark.py [--models=mlp,conv] [--samples=64,1024] [--rounds=15]
        [--only=wp,fg] [--results=results/benchmark.json]

Columns: `bp steps`, time of an update over that of a backprop update of the same batch;
`of inference`, time of a sample over that of plain inference of the same examples;
`floor`, time over that of the FLOPs no perturbation method can avoid (K noisy suffixes, a
clean pass and one pull) at the speed at which this machine runs inference of this model;
`scratch`, temporary memory of the compiled update. Programs are timed in turn, and ratios
are medians over rounds, because machines are shared.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import records
from absl import app, flags
from flax import linen as nn

import bpfree
from bpfree.program import passes
from bpfree.program.trace import trace

ONLY = flags.DEFINE_list("only", [""], "only estimators whose names contain one of these")
MODELS = flags.DEFINE_list("models", ["mlp", "conv"], "which models: mlp, conv")
SAMPLES = flags.DEFINE_list("samples", ["64", "1024"], "perturbation samples per update")
ROUNDS = flags.DEFINE_integer("rounds", 15, "timed rounds")
BATCH = flags.DEFINE_integer("batch", 128, "examples")
CHUNK = flags.DEFINE_integer("chunk", 8, "samples evaluated side by side")
RESULTS = flags.DEFINE_string("results", "", "where to write the table, if anywhere")


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (512, 512):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class Conv(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (16, 32, 64):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


INPUTS = {"mlp": (MLP(), (784,)), "conv": (Conv(), (28, 28, 1))}


class Task(NamedTuple):
    loss_fn: Callable
    params: Any
    batch: dict[str, jax.Array]


class Row(NamedTuple):
    name: str
    samples: int
    run: Callable[[], Any]
    scratch: int


def make_task(name: str) -> Task:
    model, shape = INPUTS[name]
    x = jax.random.normal(jax.random.key(0), (BATCH.value, *shape))
    label = jax.random.randint(jax.random.key(1), (BATCH.value,), 0, 10)
    loss = optax.softmax_cross_entropy_with_integer_labels
    params = model.init(jax.random.key(2), x)["params"]
    return Task(bpfree.supervised(model, loss), params, {"x": x, "label": label})


def estimators(loss_fn, samples: int) -> dict[str, Any]:
    common = {"num_samples": samples, "chunk_size": CHUNK.value}
    clean = common | {"pairing": "clean"}
    lr, np = bpfree.likelihood_ratio, bpfree.node_perturbation
    wp, fg = bpfree.weight_perturbation, bpfree.forward_gradient
    own_chunk = {"num_samples": samples}
    return {
        "np": np(loss_fn, **common),
        "np antithetic": np(loss_fn, antithetic=True, **common),
        "np gaussian": np(loss_fn, noise="gaussian", **common),
        "lr clean": lr(loss_fn, **clean),
        "lr clean antithetic": lr(loss_fn, antithetic=True, **clean),
        "lr clean shared": lr(loss_fn, noise="shared_gaussian", **clean),
        "lr noisy": lr(loss_fn, **common),
        "lr noisy shared": lr(loss_fn, noise="shared_gaussian", **common),
        "wp": wp(loss_fn, **own_chunk),
        "wp antithetic": wp(loss_fn, antithetic=True, **own_chunk),
        "wp gaussian": wp(loss_fn, noise="gaussian", **own_chunk),
        "wp rank 1": wp(loss_fn, rank=1, **own_chunk),
        "wp rank 1 gaussian": wp(loss_fn, rank=1, noise="gaussian", **own_chunk),
        "wp rank 4": wp(loss_fn, rank=4, **own_chunk),
        "fg nodes": fg(loss_fn, **common),
        "fg weights": fg(loss_fn, tangents="weights", **own_chunk),
        "fg weights rank 1": fg(loss_fn, tangents="weights", rank=1, **own_chunk),
    }


def update_row(name: str, samples: int, estimator, task: Task) -> Row:
    tx = optax.chain(estimator, optax.sgd(1e-3))
    state = tx.init(task.params)

    def step(params, state, batch):
        zeros = optax.tree.zeros_like(params)
        updates, state = tx.update(zeros, state, params, batch=batch)
        return optax.apply_updates(params, updates), state

    args = (task.params, state, task.batch)
    compiled = jax.jit(step).lower(*args).compile()
    scratch = compiled.memory_analysis().temp_size_in_bytes
    return Row(name, samples, lambda: compiled(*args), scratch)


def inference_row(task: Task) -> Row:
    """Losses of chunk x batch examples, as `vmap`ped inference of different inputs."""
    key = jax.random.key(3)
    x = jax.random.normal(key, (CHUNK.value, *task.batch["x"].shape))

    def infer(params, x):
        def one(x):
            return task.loss_fn(params, {"x": x, "label": task.batch["label"]})

        return jax.vmap(one)(x)

    compiled = jax.jit(infer).lower(task.params, x).compile()
    return Row("inference", CHUNK.value, lambda: compiled(task.params, x), 0)


def flops(fn, *args) -> float:
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def floor_in_inferences(task: Task) -> Callable[[int], float]:
    """samples -> FLOPs of the floor, in units of one inference of the batch."""
    traced = trace(task.loss_fn, task.params, task.batch)

    def noisy(params, deltas):
        return jax.vmap(passes.perturbed(traced, (params, task.batch)))(deltas)

    def pulled(params, signals):
        return bpfree.pullback(task.loss_fn)(params, task.batch)[2](signals)

    def deltas(n):
        return {s.name: jnp.ones((n, *s.shape)) for s in traced.nodes}

    one, two = (flops(noisy, task.params, deltas(n)) for n in (1, 2))
    once = flops(pulled, task.params, {k: v[0] for k, v in deltas(1).items()})
    inference = flops(task.loss_fn, task.params, task.batch)
    return lambda samples: (samples * (two - one) + once) / inference


def time_in_turn(rows: list[Row], rounds: int) -> dict[tuple[str, int], list[float]]:
    times: dict[tuple[str, int], list[float]] = {(r.name, r.samples): [] for r in rows}
    for row in rows:
        jax.block_until_ready(row.run())
    for _ in range(rounds):
        for row in rows:
            start = time.perf_counter()
            jax.block_until_ready(row.run())
            times[row.name, row.samples].append(time.perf_counter() - start)
    return times


def ratio(times: list[float], to: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, to, strict=True))


def report(name: str) -> dict[str, dict[str, Any]]:
    """{row: its columns}, printed as well."""
    task = make_task(name)
    rows = [update_row("backprop", 1, bpfree.backprop(task.loss_fn), task)]
    rows += [inference_row(task)]
    for samples in map(int, SAMPLES.value):
        made = estimators(task.loss_fn, samples)
        made = {k: tx for k, tx in made.items() if any(part in k for part in ONLY.value)}
        rows += [update_row(k, samples, tx, task) for k, tx in made.items()]
    times = time_in_turn(rows, ROUNDS.value)
    backprop = times["backprop", 1]
    floor = floor_in_inferences(task)
    inference = [t / CHUNK.value for t in times["inference", CHUNK.value]]
    print(f"\n{name}: batch {BATCH.value}, {jax.devices()[0].device_kind}, ", end="")
    print(f"jax {jax.__version__}, backprop {1e3 * statistics.median(backprop):.2f} ms, ")
    print(f"inference {1e3 * statistics.median(inference):.2f} ms a batch")
    columns = ("K", "ms", "bp steps", "of inference", "floor", "scratch MiB")
    print(f"{'estimator':<20}" + "".join(f"{c:>13}" for c in columns))
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.name == "inference":
            continue
        spent = times[row.name, row.samples]
        cost = ratio(spent, backprop), ratio(spent, inference) / row.samples
        over = cost[1] * row.samples / floor(row.samples)
        text = "" if row.name == "backprop" else f"{over:.2f}"
        print(
            f"{row.name:<20}{row.samples:>13}{1e3 * statistics.median(spent):>13.2f}"
            f"{cost[0]:>13.2f}{cost[1]:>13.2f}{text:>13}{row.scratch / 2**20:>13.1f}"
        )
        found[f"{name}: {row.name}, {row.samples}"] = {
            "backprop_steps": cost[0],
            "of_inference": cost[1],
            "of_floor": over if text else None,
            "scratch_mib": row.scratch / 2**20,
        }
    return found


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    found = {}
    for name in MODELS.value:
        if name not in INPUTS:
            raise app.UsageError(f"unknown model {name!r}; choose from {sorted(INPUTS)}")
        found |= report(name)
    if RESULTS.value:
        records.write(RESULTS.value, [], found)


if __name__ == "__main__":
    app.run(main)
