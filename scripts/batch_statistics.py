"""Batch normalisation: cosine of one estimate with the gradient of the training loss.

Three ways to perturb a convnet with batch normalisation, at an equal number of noisy
passes: `bpfree`'s own (statistics are held, and examples answer for their shares of
them: a fifth of the passes are for the statistics); statistics held as constants
(`bpfree.hold`), which is another gradient; and weight noise, which holds nothing.

    python scripts/batch_statistics.py --seeds=3
    BPFREE_DATA_DIR=... python scripts/batch_statistics.py --limits=cifar10_jpeg

The second command says what `hold_statistics=True` estimates in the limit of many
samples: a kernel's node stands after its own norm, whose statistics are therefore exact,
and only those of later norms are constants. Cosines with the gradient of the training
loss, for each kernel of the net of `configs/cifar10_convnet.py`, along a run of backprop;
in brackets with the kernel's own statistics constant as well.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bpfree
from bpfree.data import images

IMAGES, CHANNELS, CLASSES = (64, 16, 16, 3), (16, 32), 10
WAYS = ("statistics answered for", "statistics held", "weight noise")


def initial(drawn: np.random.Generator, image, channels):
    """Parameters of the net, float32."""
    sizes = zip((image[-1], *channels), channels, strict=False)
    params = {
        f"conv{i}": drawn.normal(size=(3, 3, a, b)) / np.sqrt(9 * a)
        for i, (a, b) in enumerate(sizes)
    }
    params["scale"] = [np.ones(n) for n in channels]
    params["bias"] = [np.zeros(n) for n in channels]
    width = (image[0] // 2 ** len(channels)) ** 2 * channels[-1]
    params["dense"] = drawn.normal(size=(width, CLASSES)) / np.sqrt(width)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


def problem(seed: int):
    """(params, batch)."""
    drawn = np.random.default_rng(seed)
    label = drawn.integers(CLASSES, size=IMAGES[0])
    x = drawn.normal(size=IMAGES) + 0.5 * np.cos(label)[:, None, None, None]
    params = initial(drawn, IMAGES[1:], CHANNELS)
    return params, {"x": jnp.asarray(x, jnp.float32), "label": label}


def forward(params, batch, held=lambda value, name: value):
    """Losses (B,); `held` is applied to every statistic of the batch."""
    h = batch["x"]
    for i, (scale, bias) in enumerate(zip(params["scale"], params["bias"], strict=True)):
        h = jax.lax.conv_general_dilated(
            h, params[f"conv{i}"], (2, 2), "SAME", dimension_numbers=DIMENSIONS
        )
        mean = held(h.mean((0, 1, 2)), f"mean{i}")
        power = held((h**2).mean((0, 1, 2)), f"power{i}")
        h = (h - mean) * jax.lax.rsqrt(power - mean**2 + 1e-5)
        h = jax.nn.relu(h * scale + bias)
    logits = h.reshape(len(h), -1) @ params["dense"]
    loss = optax.softmax_cross_entropy_with_integer_labels
    return loss(logits, batch["label"])


def make_loss(way: str):
    held = bpfree.hold if way == WAYS[1] else lambda value, name: value
    return lambda params, batch: forward(params, batch, held)


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


@jax.jit
def kernel_cosines(params, batch) -> jax.Array:
    """Of exact gradients with some statistics constant and the full one, (kernels, 2)."""

    def gradient(first_held: int):
        def held(value, name):
            layer = int(name[-1])
            return jax.lax.stop_gradient(value) if layer >= first_held else value

        return jax.grad(lambda p: forward(p, batch, held).mean())(params)

    def cosine(a, b):
        return jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)

    depth = len(params["scale"])
    found = [gradient(held) for held in range(depth + 1)]
    names = [f"conv{i}" for i in range(depth)]
    return jnp.stack(
        [
            jnp.stack([cosine(found[held][n], found[depth][n]) for held in (i + 1, i)])
            for i, n in enumerate(names)
        ]
    )


def limits(name: str, seed: int, looks=(0, 50, 200, 600), size=128) -> None:
    """Prints `kernel_cosines` along a run of backprop on an image set."""
    data = images.load(name, preprocess="standardise").train
    drawn = np.random.default_rng(seed)
    params, tx = initial(drawn, (32, 32, 3), (32, 64, 128)), optax.adam(1e-3)
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch):
        gradient = jax.grad(lambda p: forward(p, batch).mean())(params)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state

    for count in range(max(looks) + 1):
        rows = drawn.integers(len(data["label"]), size=size)
        batch = {k: jnp.asarray(np.asarray(v)[rows]) for k, v in data.items()}
        if count in looks:
            rows = np.asarray(kernel_cosines(params, batch))
            text = ", ".join(f"{later:.3f} ({own:.3f})" for later, own in rows)
            print(f"seed {seed}, step {count}: {text}", flush=True)
        params, state = step(params, state, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=32)
    parser.add_argument("--passes", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--limits", default="", help="an image set by name")
    args = parser.parse_args()
    if args.limits:
        for seed in range(args.seeds):
            limits(args.limits, seed)
        return
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
