"""How good are the gradients of untrained nets, against depth and |beta|? With a figure.

    python scripts/ep_depth.py [--depths=2,4,6] [--seeds=3] [--out=FILE.png]

The convolutions of configs/ep_vgg6_depth.py at `1/--narrow` of the published width (the
first two, four, all six), |beta| on a logarithmic grid, one-sided, N = 2 and N = 4;
inputs 0.67 * normal, 32 x 32 x 3. Prints 1 - cosine with implicit differentiation at the
same parameters, its mean over seeds and its largest. float32, like a training run: small
|beta| is lost to rounding, a large one to the order of the rule.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import bpfree
from bpfree import equilibrium as eq
from bpfree.models import hopfield

DEPTHS = flags.DEFINE_list("depths", ["2", "4", "6"], "how many convolutions")
SEEDS = flags.DEFINE_integer("seeds", 3, "draws of weights and inputs")
BATCH = flags.DEFINE_integer("batch", 4, "examples")
NARROW = flags.DEFINE_integer("narrow", 8, "part of the published width")
SWEEPS = flags.DEFINE_integer("sweeps", 25, "sequential sweeps of every phase")
OUT = flags.DEFINE_string("out", "", "where to save the figure (png)")

CHANNELS = (128, 128, 256, 256, 512, 512)
POOLED = (True, False, True, False, True, False)
PADDED = (True, True, True, False, True, False)
RADII = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
RULES: dict[str, Callable[..., eq.Nudging]] = {
    "one-sided": eq.one_sided,
    "N = 2": eq.centred,
    "N = 4": partial(eq.holomorphic, num_points=4),
}


def energy_of(depth: int) -> eq.Energy:
    return hopfield.Model(
        10,
        (),
        tuple(n // NARROW.value for n in CHANNELS[:depth]),
        padded=PADDED[:depth],
        pooled=POOLED[:depth],
        activation="dsilu",
        temperature=10.0,
    ).objective()


def misalignment(a, b):
    """1 - cosine, as |a/|a| - b/|b||^2 / 2: exact to rounding, and never negative."""
    x, y = (jnp.concatenate([g.ravel() for g in jax.tree.leaves(t)]) for t in (a, b))
    return jnp.square(x / jnp.linalg.norm(x) - y / jnp.linalg.norm(y)).sum() / 2


def compiled(energy: eq.Energy):
    """`(params, batch) -> {rule: 1 - cosine (radii,)}`."""
    n = SWEEPS.value
    settings = eq.Relaxation(n, n, 0, factor=1.0, tolerance=None)
    exact = bpfree.recurrent_backprop(energy, relaxation=settings, adjoint_sweeps=2 * n)

    def run(params, batch):
        truth = exact.update(None, exact.init(params), params, batch=batch)[0]

        def error(rule, radius):
            tx = bpfree.equilibrium_propagation(
                energy, nudging=rule(radius), relaxation=settings
            )
            found = tx.update(None, tx.init(params), params, batch=batch)[0]
            return misalignment(found, truth)

        radii = jnp.asarray(RADII)
        return {k: jax.lax.map(partial(error, rule), radii) for k, rule in RULES.items()}

    return jax.jit(run)


def measure(depth: int) -> dict[str, np.ndarray]:
    """{rule: (seeds, radii)}."""
    energy, found = energy_of(depth), []
    run = compiled(energy)
    for seed in range(SEEDS.value):
        keys = jax.random.split(jax.random.key(seed), 3)
        batch = {
            "x": 0.67 * jax.random.normal(keys[0], (BATCH.value, 32, 32, 3)),
            "label": jax.random.randint(keys[1], (BATCH.value,), 0, 10),
        }
        found.append(run(energy.init(keys[2], batch["x"]), batch))
    return {name: np.stack([f[name] for f in found]) for name in RULES}


def draw(results: dict[int, dict[str, np.ndarray]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(RULES), figsize=(9, 3), sharey=True)
    for axis, name in zip(axes, RULES, strict=True):
        for depth, rows in results.items():
            mean = np.maximum(rows[name].mean(0), 1e-8)
            axis.loglog(RADII, mean, "o-", label=f"{depth} convolutions")
        axis.set(title=name, xlabel="|beta|")
    axes[0].set_ylabel("1 - cosine")
    axes[-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    print("1 - cosine, mean and largest of", SEEDS.value, "seeds; jax", jax.__version__)
    print(f"{'depth':<7}{'rule':<11}" + "".join(f"{r:>18}" for r in RADII))
    results = {}
    for depth in map(int, DEPTHS.value):
        results[depth] = measure(depth)
        for name, rows in results[depth].items():
            cells = zip(rows.mean(0), rows.max(0), strict=True)
            text = "".join(f"{f'{mean:.1e} ({top:.0e})':>18}" for mean, top in cells)
            print(f"{depth:<7}{name:<11}{text}", flush=True)
    if OUT.value:
        draw(results, OUT.value)


if __name__ == "__main__":
    app.run(main)
