"""Layer-wise injection against full noisy passes: FLOPs and time, from one process.

    python scripts/layerwise_cost.py [--layers=6] [--samples=8] [--rounds=21]

A net of equal layers, as many noisy passes in every row: K of each of its L nodes, or
L K of all nodes at once; `full` evaluates L K passes as inference. FLOPs are XLA's, of
the program compiled with all samples in one chunk, so that no loop hides any. Times are
medians over rounds, in chunks of K, the programs in turn. Both relative to `full`.
"""

import statistics
import time

import jax
from absl import app, flags

import bpfree

LAYERS = flags.DEFINE_integer("layers", 6, "equal layers, a node behind each")
WIDTH = flags.DEFINE_integer("width", 256, "of every layer")
BATCH = flags.DEFINE_integer("batch", 128, "examples")
SAMPLES = flags.DEFINE_integer("samples", 8, "samples of every node")
ROUNDS = flags.DEFINE_integer("rounds", 21, "timed rounds")


def loss_fn(weights, x):
    for i, w in enumerate(weights):
        x = bpfree.node(jax.nn.relu(x) @ w, f"layer{i}")
    return (x**2).sum(1)


def update(make, samples, **options):
    def chunked(chunk_size):
        tx = make(loss_fn, num_samples=samples, chunk_size=chunk_size, **options)
        return lambda weights, x: tx.update(None, tx.init(weights), weights, batch=x)[0]

    return chunked(SAMPLES.value), chunked(LAYERS.value * samples)


def full():
    def chunked(side_by_side):
        def passes(weights, x):
            xs = (1.0 + jax.numpy.arange(LAYERS.value * SAMPLES.value))[:, None, None] * x
            chunks = xs.reshape(-1, side_by_side, *x.shape)
            return jax.lax.map(jax.vmap(lambda x: loss_fn(weights, x)), chunks)

        return passes

    return chunked(SAMPLES.value), chunked(LAYERS.value * SAMPLES.value)


def main(argv):
    del argv
    layers, samples = LAYERS.value, SAMPLES.value
    np, inp = bpfree.node_perturbation, bpfree.iterative_node_perturbation
    programs = {
        "full": full(),
        "np, all at once": update(np, layers * samples),
        "np, layer-wise": update(np, samples, layerwise=True),
        "np, layer-wise, jvp": update(np, samples, layerwise=True, derivative="jvp"),
        "inp (normals)": update(inp, samples),
        "lr, layer-wise (normals)": update(
            bpfree.likelihood_ratio, samples, layerwise=True
        ),
    }
    keys = jax.random.split(jax.random.key(0), layers + 1)
    shape = (WIDTH.value, WIDTH.value)
    weights = [jax.random.normal(k, shape) / WIDTH.value**0.5 for k in keys[1:]]
    x = jax.random.normal(keys[0], (BATCH.value, WIDTH.value))
    compiled, whole = (
        {n: jax.jit(f[i]).lower(weights, x).compile() for n, f in programs.items()}
        for i in range(2)
    )
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS.value + 1):
        for name, program in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(program(weights, x))
            times[name].append(time.perf_counter() - start)
    print(f"{layers} layers of {WIDTH.value}, batch {BATCH.value}, {samples} samples")
    print(f"{'':26}  FLOPs   time  MiB")
    reference = whole["full"].cost_analysis()["flops"]
    for name, program in compiled.items():
        ratios = [a / b for a, b in zip(times[name], times["full"], strict=True)][1:]
        flops = whole[name].cost_analysis()["flops"] / reference
        scratch = program.memory_analysis().temp_size_in_bytes / 2**20
        print(f"{name:26} {flops:6.2f} {statistics.median(ratios):6.2f} {scratch:6.1f}")


if __name__ == "__main__":
    app.run(main)
