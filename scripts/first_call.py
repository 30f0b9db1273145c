"""Size of the program of one update, and seconds to trace and compile it.

    python scripts/first_call.py --depth=12 --rounds=3 [--results=results/first_call.json]
    python scripts/first_call.py --net=resnet50 --rounds=3

The model is an unrolled transformer (width 64, 4 heads, batch 8 x 32), or ResNet-50 with
batch norm (batch 8 of 32 x 32 pixels). Printed for each estimator: StableHLO operations
of the lowered program, and seconds to trace and lower and to compile it, with both over
those of backprop. Rounds take all estimators in turn, in one process, each with empty
caches; printed are medians, and the mean ratio to backprop of the same round. --cpu
measures processor time, which a busy machine changes less than the wall clock's.
--rounds=0 counts operations only. --memory adds the peak memory of a process of its own
that traces and compiles one update, with imports.
"""

import argparse
import multiprocessing
import re
import statistics
import time

import jax
import jax.numpy as jnp
import optax
import records
from flax import linen as nn

import bpfree
from bpfree.models import resnet

BATCH, LENGTH, WORDS, WIDTH, HEADS = 8, 32, 100, 64, 4
_NORM = {"use_scale": False, "use_bias": False}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm(**_NORM)(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS)(h, h)
        h = nn.LayerNorm(**_NORM)(x)
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(h)))


class Transformer(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(WORDS, WIDTH)(ids)
        for _ in range(self.depth):
            x = Block()(x)
        return nn.Dense(WORDS)(x)


cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def transformer(depth: int):
    """(loss function, shapes of params, shapes of a batch)."""
    net = Transformer(depth)
    batch = {"x": jax.ShapeDtypeStruct((BATCH, LENGTH), "int32")}
    params = jax.eval_shape(net.init, jax.random.key(0), batch["x"])["params"]

    def loss(out, ids):
        return cross_entropy(out, ids).mean(-1)

    return bpfree.supervised(net, loss, label="x"), params, batch


def resnet50(depth: int):
    """The same of a ResNet in training mode; it has one depth."""
    del depth
    net = resnet.Model(10, layers=50)
    shapes = {"x": (BATCH, 32, 32, 3), "label": (BATCH,)}
    kinds = {"x": "float32", "label": "int32"}
    batch = {k: jax.ShapeDtypeStruct(shapes[k], kinds[k]) for k in shapes}
    variables = jax.eval_shape(net.init, jax.random.key(0), batch["x"])
    params = variables["params"]

    def loss_fn(params, batch):
        stats = jax.tree.map(lambda a: jnp.zeros(a.shape), variables["batch_stats"])
        state = {"params": params, "batch_stats": stats}
        out, _ = net.apply(state, batch["x"], train=True, mutable="batch_stats")
        return cross_entropy(out, batch["label"])

    return loss_fn, params, batch


NETS = {"transformer": transformer, "resnet50": resnet50}


def estimators(loss, batch):
    """{name: its transformation}."""
    few = {"num_samples": 8}
    likelihood = {**few, "sigma": 0.05}
    return {
        "node perturbation": bpfree.node_perturbation(loss, **few),
        "likelihood ratio (clean)": bpfree.likelihood_ratio(
            loss, pairing="clean", **likelihood
        ),
        "forward gradient": bpfree.forward_gradient(loss, **few),
        "weight perturbation": bpfree.weight_perturbation(loss, **few),
        "weight perturbation (rank 1)": bpfree.weight_perturbation(loss, rank=1, **few),
        "likelihood ratio (noisy)": bpfree.likelihood_ratio(loss, **likelihood),
        "learned feedback": bpfree.learned_feedback(loss, example_batch=batch),
        "learned feedback (responses)": bpfree.learned_feedback(
            loss, teacher="responses", example_batch=batch
        ),
        "layer-wise": bpfree.node_perturbation(loss, layerwise=True, **few),
    }


def updates(depth: int, net=transformer):
    """{name: () -> the lowered update, traced anew}, backprop first."""
    loss, params, batch = net(depth)

    def backprop(params, batch):
        return jax.grad(lambda p: loss(p, batch).mean())(params)

    def lowering(tx):
        state = jax.eval_shape(tx.init, params)
        update = lambda p, s, b: tx.update(None, s, p, batch=b)  # noqa: E731
        return lambda: jax.jit(lambda *args: update(*args)).lower(params, state, batch)

    first = {"backprop": lambda: jax.jit(lambda *a: backprop(*a)).lower(params, batch)}
    return first | {name: lowering(tx) for name, tx in estimators(loss, batch).items()}


def operations(lowered) -> int:
    """StableHLO operations, those of called functions once."""
    return len(re.findall(r"stablehlo\.", lowered.as_text()))


def seconds(lower, clock) -> tuple[float, float]:
    """To trace and lower, and to compile, as in a fresh process."""
    jax.clear_caches()
    start = clock()
    lowered = lower()
    traced = clock()
    lowered.compile()
    return traced - start, clock() - traced


def peak_mebibytes(name: str, depth: int, net: str) -> float:
    """Of this process, which compiles one update; Linux counts it from its start."""
    jax.config.update("jax_enable_compilation_cache", False)
    updates(depth, NETS[net])[name]().compile()
    return (
        int(re.findall(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[0]) / 1024
    )


def peaks(names, depth: int, net: str) -> dict[str, float]:
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(1, maxtasksperchild=1) as pool:
        jobs = [(name, depth, net) for name in names]
        found = pool.starmap(peak_mebibytes, jobs, chunksize=1)
    return dict(zip(names, found, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=NETS, default="transformer")
    parser.add_argument("--depth", type=int, default=12, help="of the transformer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="estimators, by commas; none: all")
    parser.add_argument("--cpu", action="store_true", help="processor time")
    parser.add_argument("--memory", action="store_true", help="peak while compiling")
    parser.add_argument("--results", default="", help="where to write the table as JSON")
    args = parser.parse_args()
    clock = time.process_time if args.cpu else time.perf_counter
    jax.config.update("jax_enable_compilation_cache", False)
    wanted = {"backprop", *args.only.split(",")} if args.only else None
    found = updates(args.depth, NETS[args.net])
    made = {n: f for n, f in found.items() if not wanted or n in wanted}
    sizes = {name: operations(lower()) for name, lower in made.items()}
    rounds = [
        {n: seconds(lower, clock) for n, lower in made.items()}
        for _ in range(args.rounds)
    ]
    memory = peaks(list(made), args.depth, args.net) if args.memory else {}
    head = f"{'':<28}{'operations':>16}{'trace s':>10}{'compile s':>11}{'over bp':>9}"
    print(head + f"{'peak MiB':>10}" * args.memory)
    rows = {}
    for name, size in sizes.items():
        rows[name] = {"operations": size, "over_backprop": size / sizes["backprop"]}
        line = f"{name:<28}{size:>8}{rows[name]['over_backprop']:>7.2f}x"
        if rounds:
            trace, build = (statistics.median(r[name][i] for r in rounds) for i in (0, 1))
            times = [sum(r[name]) / sum(r["backprop"]) for r in rounds]
            over = records.spread("seconds_over", times)
            rows[name] |= {"trace": trace, "compile": build, **over}
            line += f"{trace:>10.1f}{build:>11.1f}{over['seconds_over']:>8.1f}x"
        if memory:
            rows[name]["peak_mebibytes"] = memory[name]
            line += f"{memory[name]:>10.0f}"
        print(line)
    if args.results:
        records.write(args.results, [], rows)


if __name__ == "__main__":
    main()
