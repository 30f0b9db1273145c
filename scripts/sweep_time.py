"""What a sweep over seeds costs: as one program, and as processes, against its parts.

    python scripts/sweep_time.py --config=configs/digits.py --seeds=16 --steps=2000

`one run` is `bpfree-train`, from start to end, and `steady` the seconds of its log points
behind the first. The bar of a sweep is 1.25 (one run + (seeds - 1) steady). Compiled
programs are not kept from one command to the next.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parent.parent
POINTS = """import runpy
get_config = runpy.run_path({config!r})["get_config"]
def get_sweep():
    return [{{"seed": seed}} for seed in range({seeds})]
"""


def timed(module: str, *flags: str) -> float:
    with tempfile.TemporaryDirectory() as cache:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": path}
        start = time.perf_counter()
        command = [sys.executable, "-m", module, *flags]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return time.perf_counter() - start


def steady(workdir: Path, steps: int) -> float:
    """Seconds of `steps` steps, from the log points behind the first."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    logs = [r for r in records if r["kind"] == "log"][1:]
    rate = sum(r["steps_per_second"] * r["seconds"] for r in logs)
    return steps * sum(r["seconds"] for r in logs) / rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        points = home / "points.py"
        config = str(Path(args.config).resolve())
        points.write_text(POINTS.format(config=config, seeds=args.seeds))
        flags = [f"--config={points}", f"--config.num_steps={args.steps}"]
        flags += [f"--config.log_every={args.steps // 10}"]
        flags += [f"--config.checkpoint_every={args.steps // 2}"]
        train, sweep = "bpfree.training.main", "bpfree.sweeps.main"
        one = timed(train, *flags, f"--workdir={home / 'one'}")
        each = steady(home / "one", args.steps)
        together = timed(sweep, *flags, f"--workdir={home / 'together'}")
        alone = timed(sweep, *flags, "--notogether", f"--workdir={home / 'alone'}")
    parts = one + (args.seeds - 1) * each
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, {args.seeds} seeds")
    print(f"one run {one:.1f} s, of which {args.steps} steps {each:.2f} s")
    share = together / parts
    print(f"one program {together:.1f} s, {share:.2f} of the parts ({parts:.1f} s)")
    print(f"processes   {alone:.1f} s, {alone / together:.2f} of one program")


if __name__ == "__main__":
    main()
