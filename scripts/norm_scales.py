"""Learned scales of norms: weight noise, or a node at the output of each norm.

`bpfree` gives them weight noise. The alternative treats the elementwise product with a
scale as a weight product. Prints the variance of one estimate relative to the squared
gradient, of all parameters and of the norms alone, in a small transformer, at an equal
number of samples (and so of forward passes).

    python scripts/norm_scales.py --seeds=3
"""

import argparse
from unittest import mock

import jax
import numpy as np
import optax
from flax import linen as nn

import bpfree
from bpfree.program import reader, weights

SHAPE, CLASSES = (16, 12, 8), 10


class Transformer(nn.Module):
    """Two blocks of attention and MLP behind norms with scales and biases."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(CLASSES)(nn.LayerNorm()(x).mean(1))


def problem(seed: int):
    """(loss function, params, batch)."""
    drawn = np.random.default_rng(seed)
    x = drawn.normal(size=SHAPE).astype(np.float32)
    batch = {"x": x, "label": drawn.integers(CLASSES, size=SHAPE[0])}
    model = Transformer()
    params = model.init(jax.random.key(seed), x)["params"]
    loss = optax.softmax_cross_entropy_with_integer_labels
    return bpfree.supervised(model, loss), params, batch


def variances(seed: int, repeats: int, num_samples: int) -> tuple[int, float, float]:
    """(number of nodes, relative variance of all parameters, of the norms)."""
    loss_fn, params, batch = problem(seed)
    tx = bpfree.node_perturbation(loss_fn, num_samples=num_samples, sigma=1e-3)
    report = bpfree.diagnostics.measure(tx, params, batch, repeats=repeats, seed=seed)
    norms = [a for name, a in report.groups.items() if "LayerNorm" in name]
    power = sum(a.norm**2 for a in norms)
    nodes = len(bpfree.record(loss_fn)(params, batch)[1])
    return (
        nodes,
        report.overall.variance,
        sum(a.variance * a.norm**2 for a in norms) / power,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=128)
    parser.add_argument("--num_samples", type=int, default=16)
    args = parser.parse_args()
    ways = {
        "weight noise": reader.PRODUCTS,
        "node at the norm": reader.PRODUCTS | {"mul"},
    }
    for way, products in ways.items():
        patched = (mock.patch.object(m, "PRODUCTS", products) for m in (reader, weights))
        with next(patched), next(patched):
            rows = [
                variances(seed, args.repeats, args.num_samples)
                for seed in range(args.seeds)
            ]
        nodes = rows[0][0]
        every, norms = (np.array([row[i] for row in rows]) for i in (1, 2))
        print(
            f"{way}: {nodes} nodes, relative variance of all parameters "
            f"{every.mean():.1f} +- {every.std(ddof=1):.1f}, of the norms "
            f"{norms.mean():.1f} +- {norms.std(ddof=1):.1f}"
        )


if __name__ == "__main__":
    main()
