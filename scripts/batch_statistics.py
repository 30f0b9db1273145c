"""Batch normalisation: cosine of one estimate with the gradient of the training loss.

Three ways to perturb a convnet with batch normalisation, at an equal number of noisy
passes: `bpfree`'s own (statistics are held, and examples answer for their shares of
them: a fifth of the passes are for the statistics); statistics held as constants
(`bpfree.hold`), which is another gradient; and weight noise, which holds nothing.

    python scripts/batch_statistics.py --seeds=3
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bpfree

IMAGES, CHANNELS, CLASSES = (64, 16, 16, 3), (16, 32), 10
WAYS = ("statistics answered for", "statistics held", "weight noise")


def problem(seed: int):
    """(loss function of a `way`, params, batch)."""
    drawn = np.random.default_rng(seed)
    label = drawn.integers(CLASSES, size=IMAGES[0])
    x = drawn.normal(size=IMAGES) + 0.5 * np.cos(label)[:, None, None, None]
    sizes = zip((IMAGES[-1], *CHANNELS), CHANNELS, strict=False)
    params = {
        f"conv{i}": drawn.normal(size=(3, 3, a, b)) / np.sqrt(9 * a)
        for i, (a, b) in enumerate(sizes)
    }
    params["scale"] = [np.ones(n) for n in CHANNELS]
    params["bias"] = [np.zeros(n) for n in CHANNELS]
    side = IMAGES[1] // 2 ** len(CHANNELS)
    width = side**2 * CHANNELS[-1]
    params["dense"] = drawn.normal(size=(width, CLASSES)) / np.sqrt(width)
    single = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)  # noqa: E731
    return single(params), {"x": single(x), "label": label}


def make_loss(way: str):
    held = bpfree.hold if way == WAYS[1] else lambda value, name: value

    def loss_fn(params, batch):
        h = batch["x"]
        for i in range(len(CHANNELS)):
            h = jax.lax.conv_general_dilated(
                h, params[f"conv{i}"], (2, 2), "SAME", dimension_numbers=DIMENSIONS
            )
            mean = held(h.mean((0, 1, 2)), f"mean{i}")
            power = held((h**2).mean((0, 1, 2)), f"power{i}")
            h = (h - mean) * jax.lax.rsqrt(power - mean**2 + 1e-5)
            h = jax.nn.relu(h * params["scale"][i] + params["bias"][i])
        logits = h.reshape(len(h), -1) @ params["dense"]
        loss = optax.softmax_cross_entropy_with_integer_labels
        return loss(logits, batch["label"])

    return loss_fn


DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def cosines(way: str, seed: int, passes: int, repeats: int) -> np.ndarray:
    """Of each estimate with the gradient of the training loss."""
    params, batch = problem(seed)
    loss_fn = make_loss(way)
    if way == WAYS[2]:
        tx = bpfree.weight_perturbation(loss_fn, num_samples=passes, sigma=1e-3)
    else:
        count = passes * 4 // 5 if way == WAYS[0] else passes
        tx = bpfree.node_perturbation(loss_fn, num_samples=count, sigma=1e-3)
    plain = make_loss(WAYS[0])
    truth = jax.grad(lambda p: plain(p, batch).mean())(params)
    state = tx.init(params)

    @jax.jit
    def one(key):
        found = tx.estimator.estimate(key, params, batch, state).gradient
        product = optax.tree.vdot(found, truth)
        return product / optax.tree.norm(found) / optax.tree.norm(truth)

    keys = jax.random.split(jax.random.key(seed), repeats)
    return np.array([one(key) for key in keys])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=32)
    parser.add_argument("--passes", type=int, nargs="+", default=[32, 512])
    args = parser.parse_args()
    for passes in args.passes:
        for way in WAYS:
            rows = [
                cosines(way, seed, passes, args.repeats).mean()
                for seed in range(args.seeds)
            ]
            print(
                f"{passes:4d} passes, {way:24s}: cosine {np.mean(rows):.3f} "
                f"+- {np.std(rows, ddof=1):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
