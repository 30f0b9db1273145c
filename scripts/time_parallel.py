"""A recurrent layer without running back through time, against BPTT: seconds and memory.

    python scripts/time_parallel.py [--cells=gru,lstm,rnn] [--lengths=64,256,1024]

`pull` is the weight gradient from given signals: a clean pass, and one product per kernel
over (time x batch). `np` is a whole update by node perturbation with few samples, one
after the other; `np redraw` the same with noise drawn step by step. Medians over rounds,
the programs in turn; both columns of ratios are to `bptt` of the same length. Scratch is
XLA's temp size, also in units of one array (T, B, hidden).
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import optax

import bpfree
from bpfree.models import recurrent


def programs(loss_fn, params, batch, samples: int):
    """{name: (function, its arguments)}"""

    def updated(tx):
        return lambda p, b: tx.update(None, tx.init(p), p, batch=b)[0]

    def np(**options):
        tx = bpfree.node_perturbation(
            loss_fn, num_samples=samples, chunk_size=1, **options
        )
        return updated(tx)

    signals = bpfree.record(loss_fn)(params, batch)[1]
    pull = lambda p, b, s: bpfree.pullback(loss_fn)(p, b)[2](s)  # noqa: E731
    return {
        "bptt": (updated(bpfree.backprop(loss_fn)), (params, batch)),
        "pull": (pull, (params, batch, signals)),
        "np": (np(), (params, batch)),
        "np redraw": (np(redraw=True), (params, batch)),
    }


def measured(chosen, rounds: int):
    """{name: (seconds of each round, bytes)}"""
    compiled = {n: jax.jit(f).lower(*args).compile() for n, (f, args) in chosen.items()}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(rounds + 1):
        for name, (_, args) in chosen.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled[name](*args))
            seconds[name].append(time.perf_counter() - start)
    return {
        name: (seconds[name][1:], program.memory_analysis().temp_size_in_bytes)
        for name, program in compiled.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default="gru,lstm,rnn")
    parser.add_argument("--lengths", default="64,256,1024")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"jax {jax.__version__}, batch {args.batch}, {args.hidden} units and features")
    print("| cell | steps | program | ms | of bptt | scratch MiB | arrays | of bptt |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    for cell in args.cells.split(","):
        for steps in map(int, args.lengths.split(",")):
            shape = (args.batch, steps, args.hidden)
            x = jax.random.normal(jax.random.key(0), shape)
            batch = {"x": x, "label": jnp.arange(args.batch) % 10}
            model = recurrent.Model(10, cell=cell, hidden=args.hidden)
            params = model.init(jax.random.key(1), x)["params"]
            loss_fn = bpfree.supervised(model, cross_entropy)
            found = measured(programs(loss_fn, params, batch, args.samples), args.rounds)
            theirs, memory = found["bptt"]
            for name, (seconds, scratch) in found.items():
                pairs = zip(seconds, theirs, strict=True)
                ratio = statistics.median(a / b for a, b in pairs)
                cells = (
                    cell,
                    steps,
                    name,
                    f"{1e3 * statistics.median(seconds):.1f}",
                    f"{ratio:.2f}",
                    f"{scratch / 2**20:.2f}",
                    f"{scratch / x.nbytes:.1f}",
                    f"{scratch / memory:.3f}",
                )
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
