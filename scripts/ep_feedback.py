"""How exact is the gradient of a net with scaled feedback, after few sweeps? A figure.

    python scripts/ep_feedback.py [--results=FILE.json] [--out=FILE.png]

Two untrained nets of tanh states, of two and of ten layers: the relative error of an
update in float32 (centred, |beta| = 0.5, as many sweeps free as nudged) against float64
implicit differentiation at the free equilibrium of the same net, over `--batch` examples;
the mean over `--seeds` draws of weights and inputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import records
from absl import app, flags
from benchmark_ep import relative_error

import bpfree
from bpfree import equilibrium as eq
from bpfree.models import hopfield

SEEDS = flags.DEFINE_integer("seeds", 3, "draws of weights and inputs")
BATCH = flags.DEFINE_integer("batch", 32, "examples")
RESULTS = flags.DEFINE_string("results", "", "where to write the errors as JSON")
OUT = flags.DEFINE_string("out", "", "where to save the figure (png)")

NETS = {"two layers of 256": (256,) * 2, "ten layers of 128": (128,) * 10}
FEEDBACKS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02, 0.01)
SWEEPS = (1, 2, 4, 8, 16)


def draw(seed: int):
    """A batch of made-up inputs in 0 .. 1."""
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "x": jax.random.uniform(keys[0], (BATCH.value, 784)),
        "label": jax.random.randint(keys[1], (BATCH.value,), 0, 10),
    }


def energy_of(hidden, feedback) -> eq.Energy:
    return hopfield.Model(10, hidden, activation="tanh", feedback=feedback).objective()


def compiled(hidden):
    """(estimates of all sweeps, truth), each of `(params, batch, feedback)`."""

    def estimates(params, batch, feedback):
        found = []
        for n in SWEEPS:
            few = eq.Relaxation(n, n, 0, factor=1.0, tolerance=None)
            tx = bpfree.equilibrium_propagation(
                energy_of(hidden, feedback), nudging=eq.centred(0.5), relaxation=few
            )
            found.append(tx.update(None, tx.init(params), params, batch=batch)[0])
        return found

    def truth(params, batch, feedback):
        many = eq.Relaxation(free=3000, factor=1.0, tolerance=1e-11)
        tx = bpfree.recurrent_backprop(
            energy_of(hidden, feedback),
            relaxation=many,
            adjoint_sweeps=10_000,
            adjoint_tolerance=1e-9,
        )
        return tx.update(None, tx.init(params), params, batch=batch)[0]

    return jax.jit(estimates), jax.jit(truth)


def errors(hidden) -> np.ndarray:
    """(seeds, feedbacks, sweeps)."""
    estimates, truth = compiled(hidden)
    found = np.zeros((SEEDS.value, len(FEEDBACKS), len(SWEEPS)))
    for seed in range(SEEDS.value):
        batch = draw(seed)
        params = energy_of(hidden, 1.0).init(jax.random.key(seed), batch["x"])
        for i, feedback in enumerate(FEEDBACKS):
            ours = estimates(params, batch, jnp.float32(feedback))
            with jax.enable_x64(True):
                wide = jax.tree.map(_wide, (params, batch))
                exact = truth(*wide, jnp.float64(np.float32(feedback)))
            found[seed, i] = [relative_error(g, exact) for g in ours]
    return found


def _wide(a):
    a = np.asarray(a)
    return jnp.asarray(a, jnp.float64 if a.dtype == np.float32 else a.dtype)


def figure(rows: dict[str, dict[str, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(1, len(NETS), figsize=(9, 3.5), sharey=True)
    for axis, net in zip(axes, NETS, strict=True):
        for n in SWEEPS:
            row = rows[f"{net}, {n} sweeps"]
            axis.loglog(list(map(float, row)), list(row.values()), "o-", label=f"{n}")
        axis.set(title=net, xlabel="feedback", ylim=(3e-3, 10))
    axes[0].set_ylabel("relative error of the gradient")
    axes[-1].legend(title="sweeps")
    drawn.tight_layout()
    drawn.savefig(path, dpi=120)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    print(f"{'':<30}" + "".join(f"{f:>9}" for f in FEEDBACKS))
    rows = {}
    for name, hidden in NETS.items():
        mean = errors(hidden).mean(0)
        for n, of_sweeps in zip(SWEEPS, mean.T, strict=True):
            row = dict(zip(map(str, FEEDBACKS), map(float, of_sweeps), strict=True))
            rows[f"{name}, {n} sweeps"] = row
            cells = "".join(f"{error:>9.1e}" for error in row.values())
            print(f"{f'{name}, {n} sweeps':<30}{cells}", flush=True)
    if RESULTS.value:
        records.write(RESULTS.value, list(range(SEEDS.value)), rows)
    if OUT.value:
        figure(rows, OUT.value)


if __name__ == "__main__":
    app.run(main)
