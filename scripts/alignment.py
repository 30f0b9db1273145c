"""Cosine and slope of single estimates against the autodiff gradient.

    python scripts/alignment.py [--samples=16,64] [--repeats=40] [--sigma=0.01]
        [--only=wp,fg]

An untrained MLP 64-128-128-10 on 128 handwritten digits, float32. cosine: mean and
standard deviation over the repeats (fresh noise each). slope: mean and standard error of
<estimate, gradient> / <gradient, gradient>, 1 for an estimator that is right on average.
"""

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from jax.flatten_util import ravel_pytree

import bpfree
from bpfree.data import digits
from bpfree.models.mlp import Model

SAMPLES = flags.DEFINE_list("samples", ["16", "64"], "perturbation samples per estimate")
REPEATS = flags.DEFINE_integer("repeats", 40, "independent estimates")
SIGMA = flags.DEFINE_float("sigma", 0.01, "scale of the noise")
ONLY = flags.DEFINE_list("only", [""], "only estimators whose names contain one of these")
SEEDS = flags.DEFINE_integer("seeds", 3, "networks, differently initialised")

LAST = "Dense_2"  # its node has ten entries; "one layer" perturbs and compares it alone


def variants(loss_fn, samples):
    common = {"num_samples": samples, "sigma": SIGMA.value}
    lr, np = bpfree.likelihood_ratio, bpfree.node_perturbation
    wp, fg = bpfree.weight_perturbation, bpfree.forward_gradient
    alr = bpfree.approximated_likelihood_ratio
    inp, anp = bpfree.iterative_node_perturbation, bpfree.activity_node_perturbation
    return {
        "np": np(loss_fn, **common),
        "np gaussian": np(loss_fn, noise="gaussian", **common),
        "np antithetic": np(loss_fn, antithetic=True, **common),
        "np leave_one_out": np(loss_fn, baseline="leave_one_out", **common),
        "lr clean": lr(loss_fn, pairing="clean", **common),
        "lr clean shared": lr(
            loss_fn, pairing="clean", noise="shared_gaussian", **common
        ),
        "lr noisy": lr(loss_fn, **common),
        "lr noisy shared": lr(loss_fn, noise="shared_gaussian", **common),
        "lr noisy, baseline batch": lr(loss_fn, baseline="batch", **common),
        "lr noisy, baseline none": lr(loss_fn, baseline="none", **common),
        "np layer-wise": np(loss_fn, layerwise=True, **common),
        "inp": inp(loss_fn, **common),
        "anp": anp(loss_fn, **common),
        "anp per layer": anp(loss_fn, norm="per_layer", **common),
        "wp": wp(loss_fn, **common),
        "wp antithetic": wp(loss_fn, antithetic=True, **common),
        "wp gaussian": wp(loss_fn, noise="gaussian", **common),
        "wp rank 1": wp(loss_fn, rank=1, **common),
        "wp rank 4": wp(loss_fn, rank=4, **common),
        "wp standardise": wp(loss_fn, baseline="standardise", **common),
        "fg nodes": fg(loss_fn, num_samples=samples),
        "fg weights": fg(loss_fn, tangents="weights", num_samples=samples),
        **{
            f"lr clean {noise}": lr(loss_fn, pairing="clean", noise=noise, **common)
            for noise in ("laplace", "student_t", "sobol", "orthogonal")
        },
        **{
            f"alr {encode}": alr(loss_fn, encode=encode, **common)
            for encode in ("noise", "loss", "product")
        },
        **{
            f"one layer, {noise}": lr(
                loss_fn, pairing="clean", noise=noise, nodes=[LAST], **common
            )
            for noise in ("gaussian", "sobol", "orthogonal")
        },
    }


def statistics(tx, loss_fn, params, batch, only_last):
    """(cosines, slopes) of independent estimates, each (repeats,)."""
    truth = jax.grad(lambda p: loss_fn(p, batch).mean())(params)
    chosen = (lambda tree: tree[LAST]) if only_last else (lambda tree: tree)
    truth = ravel_pytree(chosen(truth))[0]

    def one(key):
        state = tx.init(params)._replace(key=jax.random.key_data(key))
        gradient, _ = tx.update(None, state, params, batch=batch)
        estimate = ravel_pytree(chosen(gradient))[0]
        product = estimate @ truth
        norms = jnp.linalg.norm(estimate) * jnp.linalg.norm(truth)
        return product / norms, product / (truth @ truth)

    keys = jax.random.split(jax.random.key(1), REPEATS.value)
    return jax.jit(lambda keys: jax.lax.map(one, keys))(keys)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    model = Model(hidden=(128, 128), num_classes=10)
    batch = {k: jnp.asarray(v[:128]) for k, v in digits.load().train.items()}
    loss_fn = bpfree.supervised(model, optax.softmax_cross_entropy_with_integer_labels)
    inits = jax.random.split(jax.random.key(0), SEEDS.value)
    networks = [model.init(key, batch["x"])["params"] for key in inits]
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, sigma {SIGMA.value}")
    print(f"{'estimator':<26}{'K':>5}{'cosine':>16}{'slope':>18}")
    for samples in map(int, SAMPLES.value):
        for name, tx in variants(loss_fn, samples).items():
            if not any(part in name for part in ONLY.value):
                continue
            only_last = name.startswith("one layer")
            found = [statistics(tx, loss_fn, p, batch, only_last) for p in networks]
            cosine, slope = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
            error = slope.std() / jnp.sqrt(slope.size)
            print(
                f"{name:<26}{samples:>5}{cosine.mean():>8.3f} +- {cosine.std():.3f}"
                f"{slope.mean():>10.3f} +- {error:.3f}"
            )


if __name__ == "__main__":
    app.run(main)
