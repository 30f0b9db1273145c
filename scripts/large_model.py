"""Memory of a decoder whose parameters no device holds: inference, and one update.

    python scripts/large_model.py --target=tpu:v5e:4x4 --model=8

Compiles a decoder of 6.7 billion bfloat16 parameters (32 layers of width 4096, stacked
and scanned) with columns and rows of its matrices over the mesh axis `model`, samples
over the rest, and prints what a device holds. Nothing is run. Needs Python 3.12 and the
extra `tpu` or `cuda`.
"""

import argparse
import os

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import bpfree
from bpfree import hardware

LAYERS, WIDTH, HEADS, WORDS = 32, 4096, 32, 32_000
SHAPES = {
    "embed": ((WORDS, WIDTH), (None, "model")),
    "qkv": ((LAYERS, WIDTH, 3 * WIDTH), (None, None, "model")),
    "out": ((LAYERS, WIDTH, WIDTH), (None, "model", None)),
    "up": ((LAYERS, WIDTH, 4 * WIDTH), (None, None, "model")),
    "down": ((LAYERS, 4 * WIDTH, WIDTH), (None, "model", None)),
    "head": ((WIDTH, WORDS), (None, "model")),
}


def loss_fn(params, batch):
    """Mean cross-entropy of each sequence's next tokens, (B,)."""
    tokens = batch["tokens"]
    length = tokens.shape[1]
    mask = jnp.tril(jnp.ones((length, length), bool))

    def norm(x):
        y = x.astype(jnp.float32)
        y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
        return y.astype(x.dtype)

    def layer(x, p):
        qkv = (norm(x) @ p["qkv"]).reshape(*x.shape[:2], HEADS, 3, WIDTH // HEADS)
        q, k, v = (qkv[..., i, :] for i in range(3))
        scores = jnp.einsum("bthc,bshc->bhts", q, k).astype(jnp.float32)
        scores = jnp.where(mask, scores / (WIDTH // HEADS) ** 0.5, -1e9)
        shares = jax.nn.softmax(scores).astype(x.dtype)
        x = x + jnp.einsum("bhts,bshc->bthc", shares, v).reshape(x.shape) @ p["out"]
        return x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"], None

    stacked = {k: params[k] for k in ("qkv", "out", "up", "down")}
    x = lax.scan(layer, params["embed"][tokens], stacked)[0]
    logits = (norm(x) @ params["head"])[:, :-1].astype(jnp.float32)
    found = jnp.take_along_axis(logits, tokens[:, 1:, None], 2)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - found).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="tpu:v5e:4x4")
    parser.add_argument("--model", type=int, default=8, help="devices of the axis model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--samples", default="64,4096")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    target = hardware.find(args.target)
    hardware.targets.stay_on_cpu(target)
    mesh = hardware.mesh(target, sample=target.size // args.model, model=args.model)

    def at(shape, dtype, *axes):
        place = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    params = {k: at(shape, jnp.bfloat16, *axes) for k, (shape, axes) in SHAPES.items()}
    batch = {"tokens": at((args.batch, args.length), jnp.int32)}
    count = sum(p.size for p in params.values())
    print(f"{count / 1e9:.2f} billion parameters, {args.target}, {dict(mesh.shape)}")

    def say(name, step, *rest, **options):
        found = hardware.report(jax.jit(step, **options), rest, target)
        total = sum(found.memory.values())
        kinds = {k: (c.calls, round(c.bytes)) for k, c in found.collectives.items()}
        print(
            f"{name}: {total / 1e9:.2f} GB a device, of which scratch "
            f"{found.memory['scratch'] / 1e9:.2f}; fits: {found.fits}; {kinds}; compiled "
            f"in {found.compile_seconds:.0f} s",
            flush=True,
        )

    say("inference", loss_fn, params, batch)
    sharding = NamedSharding(mesh, PartitionSpec("sample"))
    for samples in map(int, args.samples.split(",")):
        options = {"rank": 1, "chunk_size": 1, "sharding": sharding}
        tx = bpfree.seed_replay(loss_fn, 1e-6, num_samples=samples, **options)
        state = jax.tree.map(
            lambda a: at(a.shape, a.dtype), jax.eval_shape(tx.init, params)
        )
        name = f"seed replay, rank 1, {samples} samples"
        say(name, tx.step, params, state, batch, donate_argnums=0)


if __name__ == "__main__":
    main()
