"""Predicted beside measured, on the accelerator at hand: one table, under ten minutes.

    python scripts/measured_hardware.py --target=h200:1

Times the programs of `absent_hardware.py` on the first device, and sets the lower bound
that `bpfree.hardware` predicts for the target next to it. The target is the name of the
device at hand; without a known one (cpu:1) only the measured column is filled.
"""

import argparse
import statistics
import time

import absent_hardware
import absent_nets
import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from bpfree import hardware
from bpfree.hardware.table import duration


def values(shapes):
    """Zeros are as slow as numbers; keys and counts are of no matter."""
    make = jax.jit(
        lambda: jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shapes)
    )
    return make()


def seconds(step: absent_hardware.Step, device, repeats: int, donated: bool) -> float:
    """Median of so many runs, after one that warms up."""
    bare = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), step.args)
    args = jax.device_put(values(bare), device)
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        out = jax.block_until_ready(step.run(*args))
        times.append(time.perf_counter() - begun)
        args = (*out, args[2]) if donated else args
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="h200:1, the device at hand")
    parser.add_argument("--net", default="mlp", choices=absent_nets.NETS)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--programs", default=",".join(absent_hardware.PROGRAMS))
    args = parser.parse_args()
    device, target = jax.devices()[0], hardware.find(args.target)
    net, names = absent_nets.NETS[args.net](), args.programs.split(",")
    mesh = Mesh(np.array([device]), ("sample",), axis_types=(AxisType.Auto,))
    predicted = {}
    if target.chip:
        predicted = dict(absent_hardware.reports(args.target, net, args.samples, names))
    plain = absent_hardware.inference(net)
    alone = seconds(plain, device, args.repeats, donated=False) / plain.passes
    print(f"{device.device_kind}, {args.target}; inference {duration(alone)} a batch")
    print(f"{'':18}  predicted   measured  share of inference, measured")
    for name in names:
        step = absent_hardware.step(name, net, mesh, args.samples)
        found = seconds(step, device, args.repeats, donated=True)
        bound = predicted[name].step_seconds if predicted else None
        said = duration(bound) if bound else "-"
        share = 100 * alone * step.passes / found
        print(f"{name:18} {said:>10} {duration(found):>10}  {share:.0f} %", flush=True)


if __name__ == "__main__":
    main()
