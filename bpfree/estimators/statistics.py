r"""Statistics of the batch: means in which noise of several examples meets.

Batch normalisation, say, subtracts the mean m over the batch and divides by the root of
a mean square. Noisy passes hold each statistic S at its clean value, so that noise of
one example still moves its own loss alone; what S would have done to all losses is put
back to first order. With c_b the share of example b in S = sum_b c_b and the gain
G_S = d(sum_b L_b) / dS,

    L'_b = L_b + sum_S <G_S, c_b - c_b of the clean pass>

has the gradient of the loss that was written, and stands in the place of L_b in every
estimate. The gains come from noisy passes of their own, a quarter as many as the nodes
have, in which only statistics move, by tau eps, and nothing is held:

    G_S = 1 / (K tau) sum_k eps_k sum_b (L_kb - L_b)

and tau is sigma in units of the standard deviation of B c_b over the examples. The
estimate of G is independent of the noise at the nodes, so nothing it multiplies is
biased by it.
"""

from functools import partial

import jax
import jax.numpy as jnp

from bpfree.estimators import runs
from bpfree.estimators.layerwise import Part, one_at_a_time
from bpfree.estimators.runs import Run, moving
from bpfree.program import passes
from bpfree.program.tags import SHARES
from bpfree.program.trace import NodeTree, Program
from bpfree.sampling.loop import Layout, sum_over_draws
from bpfree.sampling.noise import draw_chunk
from bpfree.sampling.scale import rms, scaled
from bpfree.sampling.weighting import credit


def answered(run: Run) -> Program:
    """The program of the noisy passes, in which examples answer for their shares.

    `run.values` has the statistics and shares of the clean pass. Layer-wise, statistics
    move one at a time, like the nodes. With `hold_statistics` nobody answers for them.
    """
    sites, layout = run.program.statistics, _layout(run)
    gains: NodeTree = {}
    if sites and not run.settings.hold_statistics:
        parts = [Part(sites, layout)]
        if run.settings.schedule.layerwise:
            parts = one_at_a_time(sites, layout, run.program)
        for part in parts:
            gains |= _gains(run, part)
    return run.program.answering(run.values, gains)


def _gains(run: Run, part: Part) -> NodeTree:
    """{shares: G} of the statistics of a part, moved by noise of the whole batch."""
    plan, layout, sites = run.settings.plan, part.layout, part.nodes
    program = moving(run, layout, part.names)
    losses, clean = passes.perturbed(program, run.args, part.names), run.clean
    linear = run.settings.derivative == "jvp"
    if linear:
        zeros = {s.name: jnp.zeros(s.shape, jnp.float32) for s in sites}
        losses, clean = jax.linearize(losses, zeros)[1], jnp.zeros_like(clean)
    evaluate = runs.of_samples(part, losses, linear)
    sigma = jnp.stack([s.mean() for s in run.sigma.values()]).min()
    shares = {s.name: run.values[SHARES + s.name] for s in sites}
    tau = {s.name: sigma * _unit(shares[s.name], s.steps) for s in sites}

    def chunk(draws):
        noise = draw_chunk(plan, run.key, draws, sites)
        found = evaluate({name: scaled(tau[name], z) for name, z in noise.items()})
        gains = {}
        for together, losses in runs.by_losses(part, found):
            change = (losses - clean[None]).astype(jnp.float32)
            gains |= {s.name: credit(change, noise[s.name], None) for s in together}
        return gains, ()

    total, _ = sum_over_draws(chunk, layout)
    count = layout.num_draws * plan.group
    return {SHARES + s.name: total[s.name] / count / tau[s.name] for s in sites}


def _layout(run: Run) -> Layout:
    """A quarter of the draws that the nodes have (BUILD_NOTES, batch statistics)."""
    layout = max(run.settings.schedule.layouts, key=lambda layout: layout.num_draws)
    local = -(-layout.num_draws // (4 * layout.devices))
    return layout._replace(num_draws=local * layout.devices)


@partial(jax.jit, static_argnums=1)  # one function for all shares of a shape
def _unit(shares: jax.Array, steps: int) -> jax.Array:
    """tau / sigma of the module docstring, from (*steps, examples, *statistic).

    Where all shares are equal it is a thousandth of that of others; where all are equal
    everywhere, a thousandth of their size, or of 1.
    """
    shares = shares.astype(jnp.float32)
    count = shares.shape[steps]
    spread, size = jnp.std(shares, steps) * count, rms([shares])[0] * count
    unit = jnp.where(size > 0, size, 1.0)
    others = rms([spread])[0]
    floor = 1e-3 * jnp.where(others > 1e-6 * unit, others, unit)
    return jnp.maximum(spread, floor)
