"""Nets whose weights come inside packages, moved to something else without backprop.

    python scripts/pretrained.py [--net=characters] [--budget=1200] [--seeds=3]
        [--results=results/pretrained_characters.json]

Every arm of the config in `examples/pretrained_<net>` takes as many updates as cost
`--budget` inferences of a batch by `bpfree.diagnostics.cost` (backprop's cost 3), at the
rate of `--rates` that has the best validation value on a seed of its own. Then seeds 0,
1, ...: mean and standard deviation on the test part, memory that one update takes for
temporary values, and how many weight products derivatives cross. "Gap" is the share of
the way from the untouched net to backprop on all parameters. Arms that the file of
results has already are not run again.
"""

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import records
from absl import app, flags

import bpfree
from bpfree.training import config, config_files, job, steps

NET = flags.DEFINE_enum("net", "characters", ["characters", "pronunciation"], "which")
BUDGET = flags.DEFINE_float("budget", 1200, "inferences of a batch that a run may cost")
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each arm")
RATES = flags.DEFINE_list("rates", ["3e-3", "1e-2"], "the grid")
ARMS = flags.DEFINE_list(
    "arms", "bp feedback readout np scratch wp".split(), "of the config"
)
DATA = flags.DEFINE_string("path", "", "the text, if it lies elsewhere than by default")
RESULTS = flags.DEFINE_string("results", "", "where to write the table, if anywhere")
SEARCH_SEED = 1000
EXAMPLES = Path(__file__).parent.parent / "examples"


def compile_arm(settings: config.Settings, data, num_steps: int):
    """`(seed, rate, part) -> {metric: value}` at the end of a run; compiled once."""

    def draft(seed, rate):
        schedule = {"init_value": rate, "decay_steps": num_steps}
        sections = {**settings.sections, "schedule": schedule}
        return job.draft(settings._replace(seed=seed, sections=sections), data)

    @jax.jit
    def begin(seed):
        made = draft(seed, 1.0)
        return made.init(made.task.keys.init)

    @jax.jit
    def train(params, model_state, seed, rate, examples):
        task = draft(seed, rate).task
        opt_state = task.transformation.init(params)
        state = steps.TrainState(jnp.int32(0), params, model_state, opt_state)
        return steps.advance(task, num_steps, state, examples)[0]

    examples = jax.device_put(data.train)
    measure = jax.jit(draft(0, 1.0).task.measure)

    def run(seed, rate, part):
        state = train(*begin(seed), seed, rate, examples)
        seen = measure(state.params, state.model_state, part)
        return {name: float(value) for name, value in seen.items()}

    return run


def memory(made: job.Job) -> float:
    """MB of temporary values in one update, as XLA plans it."""
    tx = made.task.transformation
    batch = steps.with_state(made.batch, made.model_state)
    state = jax.eval_shape(tx.init, made.params)
    update = jax.jit(lambda s, p, b: tx.update(None, s, p, batch=b))
    compiled = update.lower(state, made.params, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def carried(made: job.Job, arm: str) -> int | None:
    """Weight products that the error signal crosses; None for backprop: all of them."""
    if arm in ("readout", "wp"):
        return 0  # the last layer alone; no derivative of anything
    section = made.settings.sections[made.settings.chain[0][1]]
    if made.settings.chain[0][0] == "backprop":
        return None
    nodes = section.get("nodes")
    found = bpfree.blocks(made.loss_fn, made.params, made.batch, nodes=nodes)
    return sum(block.carried for block in found)


def measure(arm: str, data) -> dict[str, Any]:
    settings = read(arm)
    made = job.assemble(settings, data)
    cost = bpfree.diagnostics.cost(made.chain.estimator, made.params, made.batch)
    num_steps = int(BUDGET.value / cost)
    run = compile_arm(settings, data, num_steps)
    metric = job.find_metrics(settings)[0]
    sign = 1 if metric.lower else -1
    rates = [float(r) for r in RATES.value]
    by_rate = {r: run(SEARCH_SEED, r, data.validation)[metric.name] for r in rates}
    score = {r: sign * value for r, value in by_rate.items()}
    rate = min(score, key=lambda r: score[r] if np.isfinite(score[r]) else np.inf)
    print(arm, by_rate, flush=True)
    start = time.perf_counter()
    tests = [run(seed, rate, data.test) for seed in range(SEEDS.value)]
    values = {name: [test[name] for test in tests] for name in tests[0]}
    row = {
        "estimator": settings.chain[0][0],
        "cost": cost,
        "steps": num_steps,
        "rate": rate,
        "carried": carried(made, arm),
        "memory": memory(made),
        "seconds": (time.perf_counter() - start) / SEEDS.value,
    }
    for name, found in values.items():
        row |= records.spread(name, found)
    return row


def read(arm: str) -> config.Settings:
    """The config of an arm."""
    made = config_files.load(
        f"{EXAMPLES}/pretrained_{NET.value}/config.py:{arm}"
    ).config()
    if DATA.value:
        made.data.path = DATA.value
    return config.read(made)


def untouched(data) -> dict[str, Any]:
    """The net as it comes."""
    made = job.assemble(read("bp"), data)
    test = jax.jit(made.task.measure)(made.params, made.model_state, data.test)
    return {name: float(value) for name, value in test.items()}


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    data = job.load(read("bp"))
    done = Path(RESULTS.value)
    rows = json.loads(done.read_text())["rows"] if done.is_file() else {}
    rows.setdefault("untouched", untouched(data))
    for arm in (arm for arm in ARMS.value if arm not in rows):
        rows[arm] = measure(arm, data)
        print(rows[arm], flush=True)
        if RESULTS.value:
            records.write(RESULTS.value, list(range(SEEDS.value)), rows)


if __name__ == "__main__":
    app.run(main)
