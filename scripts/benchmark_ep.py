"""Cost and error of one update of equilibrium propagation, from one process.

    python scripts/benchmark_ep.py [--nets=mlp,conv] [--rounds=15]
    python scripts/benchmark_ep.py --nets=conv --trained=FILE

Columns: `bp steps`, time of an update (estimator and SGD) over that of a backprop update
of the feed-forward net of the same shape and batch; `error`, relative to the float64
gradient of the same nudging rule after hundreds of sweeps; sweeps of free, real and
complex phases. Adaptive rows have seen 30 other batches first. Programs are timed in
turn; times are CPU times of the process, and ratios are of minima over rounds, because
machines are shared.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import records
from absl import app, flags
from flax import linen as nn

import bpfree
from bpfree import equilibrium as eq
from bpfree.models import hopfield

NETS = flags.DEFINE_list("nets", ["mlp", "conv"], "which nets: mlp, conv")
ROUNDS = flags.DEFINE_integer("rounds", 15, "timed rounds")
TRAINED = flags.DEFINE_string(
    "trained", "", "weights and images that ep_alignment.py --out kept, for `conv`"
)
BATCHES = flags.DEFINE_integer("batches", 30, "batches that adaptive rows see first")
RESULTS = flags.DEFINE_string("results", "", "where to write the table, if anywhere")

PUBLISHED = eq.Relaxation(200, 50, 0, ordering="jacobi", tolerance=None)
CHANNELS = (32, 64, 128, 128)


class FeedForward(nn.Module):
    """The same layers, run once; ReLU, as the published backprop baseline has it."""

    channels: tuple[int, ...]
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(self.channels):
            padding = "SAME" if i + 1 < len(self.channels) else "VALID"
            conv = nn.Conv(width, (3, 3), padding=padding, name=f"layer_{i + 1}")
            x = nn.relu(conv(x))
            x = eq.softmax_pool().fn(x)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden, len(self.channels) + 1):
            x = nn.relu(nn.Dense(width, name=f"layer_{i}")(x))
        return nn.Dense(10, name="readout")(x)


class Net(NamedTuple):
    energy: eq.Energy
    twin: FeedForward
    shape: tuple[int, ...]
    batch: int
    exact: eq.Relaxation
    rows: dict[str, tuple[eq.Nudging, eq.Relaxation]]


def nets() -> dict[str, Net]:
    sor = eq.Relaxation(15, 12, 4, factor=1.6, tolerance=None)
    mlp = {
        f"{name}, N={n}": (eq.holomorphic(0.4, n), settings)
        for n in (2, 10)
        for name, settings in (
            ("published", PUBLISHED),
            ("15/12/4 sweeps, w=1.6", sor),
            ("default", eq.Relaxation()),
        )
    }
    conv = {
        "20/16 Jacobi sweeps, N=2": (
            eq.centred(1.0),
            PUBLISHED._replace(free=20, nudged=16),
        ),
        "2/3 sweeps, w=1, N=2": (
            eq.centred(1.0),
            eq.Relaxation(2, 3, factor=1.0, tolerance=None),
        ),
        "default, N=2": (eq.centred(1.0), eq.Relaxation()),
        "default, N=4": (eq.holomorphic(1.0, 4), eq.Relaxation()),
    }
    slow = eq.Relaxation(400, 400, 400, factor=1.6, tolerance=None)
    return {
        "mlp": Net(
            hopfield.Model(10).objective(),
            FeedForward((), (256, 256)),
            (784,),
            20,
            slow,
            mlp,
        ),
        "conv": Net(
            hopfield.Model(10, (), CHANNELS, "dsilu").objective(),
            FeedForward(CHANNELS, ()),
            (32, 32, 3),
            16,
            slow._replace(free=60, nudged=60, predicted=60, factor=1.0),
            conv,
        ),
    }


def make_batch(net: Net, seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    if TRAINED.value:
        with np.load(TRAINED.value) as kept:
            rows = rng.choice(len(kept["label"]), net.batch, replace=False)
            return {name: jnp.asarray(kept[name][rows]) for name in ("x", "label")}
    flat = len(net.shape) == 1
    size = (net.batch, *net.shape)
    x = rng.uniform(size=size) if flat else 0.67 * rng.normal(size=size)
    return {
        "x": jnp.asarray(x, jnp.float32),
        "label": jnp.asarray(rng.integers(0, 10, net.batch)),
    }


def first_params(net: Net, batch):
    """Fresh parameters, or the trained ones."""
    if not TRAINED.value:
        return net.energy.init(jax.random.key(0), batch["x"])
    params: dict[str, dict[str, jax.Array]] = {}
    with np.load(TRAINED.value) as kept:
        for name in kept.files:
            if "/" in name:
                layer, leaf = name.split("/")
                params.setdefault(layer, {})[leaf] = jnp.asarray(kept[name])
    return params


def compiled_update(estimator, params, batch):
    """`(params, state, batch) -> (params, state, gradient)`, and the first state."""
    sgd = optax.sgd(0.05)

    def step(params, state, batch):
        gradient, state = estimator.update(None, state, params, batch=batch)
        updates, _ = sgd.update(gradient, sgd.init(params))
        return optax.apply_updates(params, updates), state, gradient

    state = estimator.init(params)
    return jax.jit(step).lower(params, state, batch).compile(), state


def warmed(update, state, params, net: Net):
    """The state after other batches, the parameters held."""
    for seed in range(1, BATCHES.value + 1):
        state = update(params, state, make_batch(net, seed))[1]
    return state


def exact_gradient(net: Net, rule, params, batch):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)
        data = {
            "x": jnp.asarray(np.asarray(batch["x"]), jnp.float64),
            "label": jnp.asarray(np.asarray(batch["label"])),
        }
        tx = bpfree.equilibrium_propagation(
            net.energy, nudging=rule, relaxation=net.exact
        )
        run = jax.jit(lambda p, b: tx.update(None, tx.init(p), p, batch=b)[0])
        return jax.tree.map(np.asarray, run(wide, data))


def relative_error(a: Any, b: Any) -> float:
    x, y = (
        np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(t)])
        for t in (a, b)
    )
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def cpu_times(programs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    for run in programs.values():
        jax.block_until_ready(run())
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(ROUNDS.value):
        for name, run in programs.items():
            start = time.process_time()
            jax.block_until_ready(run())
            best[name] = min(best[name], time.process_time() - start)
    return best


def report(name: str, net: Net) -> dict[str, dict[str, Any]]:
    """The rows of a net, printed as well."""
    batch = make_batch(net, 0)
    params = first_params(net, batch)
    twin = net.twin.init(jax.random.key(1), batch["x"])["params"]
    cost = optax.softmax_cross_entropy_with_integer_labels
    backprop = bpfree.backprop(bpfree.supervised(net.twin, cost))
    step, state = compiled_update(backprop, twin, batch)
    programs = {"backprop": lambda: step(twin, state, batch)}
    results = {}
    for row, (rule, settings) in net.rows.items():
        tx = bpfree.equilibrium_propagation(net.energy, nudging=rule, relaxation=settings)
        update, first = compiled_update(tx, params, batch)
        first = warmed(update, first, params, net) if settings.factor is None else first
        run = lambda u=update, s=first: u(params, s, batch)  # noqa: E731
        programs[row] = run
        _, after, gradient = run()
        truth = exact_gradient(net, rule, params, batch)
        results[row] = relative_error(gradient, truth), bpfree.metrics(after)
    times = cpu_times(programs)
    print(f"\n{name}: batch {net.batch}, jax {jax.__version__}, backprop ", end="")
    print(f"{1e3 * times['backprop']:.2f} ms CPU")
    print(f"{'update':<28}{'ms':>9}{'bp steps':>10}{'error':>10}   sweeps")
    rows = {}
    for row, (error, said) in results.items():
        sweeps = [int(said[f"{kind}_sweeps"]) for kind in ("free", "nudged", "complex")]
        ratio = times[row] / times["backprop"]
        print(f"{row:<28}{1e3 * times[row]:>9.2f}{ratio:>10.1f}{error:>10.1e}   {sweeps}")
        kind = f"{name}, trained" if TRAINED.value else name
        measured = {"backprop_steps": ratio, "error": error, "sweeps": sweeps}
        rows[f"{kind}: {row}"] = measured
    return rows


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    made, rows = nets(), {}
    for name in NETS.value:
        if name not in made:
            raise app.UsageError(f"unknown net {name!r}; choose from {sorted(made)}")
        rows |= report(name, made[name])
    if RESULTS.value:
        records.write(RESULTS.value, [0], rows)


if __name__ == "__main__":
    app.run(main)
