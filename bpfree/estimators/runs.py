"""One update of a perturbation estimator: its noise, its losses, and their weights."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.estimators import layerwise
from bpfree.estimators.derivative import linearized
from bpfree.estimators.settings import Settings, check_program
from bpfree.program import passes, tags, tangents
from bpfree.program.blocks import check_blocks, warn_of_backpropagation
from bpfree.program.singly import singly
from bpfree.program.trace import NodeTree, Program, trace
from bpfree.sampling import baselines
from bpfree.sampling.credit import check_segments, rows_of, rule_weights
from bpfree.sampling.learned_scale import current_scales, scale_slopes
from bpfree.sampling.loop import Layout, laid_out, mean_of, over_samples, sum_over_draws
from bpfree.sampling.noise import draw_chunk
from bpfree.sampling.rounding import as_felt
from bpfree.sampling.scale import at_least_float32, of_each, scaled, scales


class Run(NamedTuple):
    """One update, and what the noisy passes of one part of it need of the clean one.

    Attributes:
      program: of the noisy passes; every node cuts it, also those that are not perturbed.
      sigma: {node: () or (channels,)}; None if no noise is injected.
      clean: losses of the clean pass, (B,) or (); None if there is none.
      values: of its nodes.
      part: the nodes perturbed in one program, and their draws.
      share: of this part in the mean over all parts.
      apart: whether the devices' sums stay apart, see `loop.Layout`.
    """

    settings: Settings
    program: Program
    args: tuple
    key: jax.Array
    sigma: Any
    clean: Any
    values: NodeTree
    part: layerwise.Part = layerwise.NOTHING
    share: float = 1.0
    apart: bool = False

    @property
    def num_samples(self) -> int:
        return self.part.layout.num_draws * self.settings.plan.group


def begin(settings: Settings, key, args, state, wanted) -> Run:
    """One update, before its clean pass; raises and warns of what the trace shows."""
    program = traced(settings, *args)
    warn_of_backpropagation(check_blocks(program, args, wanted), settings.nodes)
    key = tags.fold_in_shards(key, program.losses)
    if settings.derivative == "jvp" or settings.sigma is None:  # there is no step size
        sigma = scales(1.0, state.count, program.nodes)
    else:
        sigma = current_scales(settings.sigma, state.inner, state.count, program.nodes)
    return Run(settings, program, args, key, sigma, None, {})


def traced(settings: Settings, params, batch, key=None) -> Program:
    """The traced loss function; raises ValueError where it and the settings disagree."""
    credit = settings.credit
    program = trace(
        settings.loss_fn,
        params,
        batch,
        key,
        settings.nodes,
        loss_axes=1 if credit is None else 2,
        credited=credit is not None,
        rows=rows_of(credit, batch),
        hold_stops=settings.hold_stop_gradient,
    )
    check_segments(credit, batch, program.batch_size)
    check_program(settings, program)
    return program


def split(run: Run) -> list[Run]:
    """One run for each part; in noisy pairing each node has its own pull."""
    settings = run.settings
    parts = layerwise.parts(settings.schedule, run.program, alone=settings.noisy)
    share = 1 / len(parts)

    def one(part):
        program = moving(run, part.layout, part.names)
        return run._replace(program=program, part=part, share=share)

    return [one(part) for part in parts]


def moving(run: Run, layout: Layout, names: Collection[str]) -> Program:
    """The program as noise at these nodes moves it."""
    if run.settings.derivative == "jvp":
        return tangents.known(run.program)
    return laid_out(run.program, layout, names)


def draw(run: Run, draws) -> NodeTree:
    """Noise of a chunk of draws, samples in front: {name: (c * G, *node shape)}."""
    return draw_chunk(run.settings.plan, run.key, draws, run.part.nodes)


def deltas(run: Run, noise: NodeTree) -> NodeTree:
    """What is added at the nodes: sigma times the noise."""
    return {name: scaled(run.sigma[name], z) for name, z in noise.items()}


def losses(run: Run):
    """`deltas -> losses`, or their first-order change; samples in front of both.

    {node: losses} of nodes that are perturbed one at a time.
    """
    one = passes.perturbed(run.program, run.args, run.part.names)
    linear = run.settings.derivative == "jvp"
    if linear:
        one = linearized(one, run.part.nodes)
    return of_samples(run.part, one, linear)


def of_samples(part: layerwise.Part, one, linear: bool):
    """`one` of samples of deltas; {node: result} of nodes that are not together."""
    if part.together:
        return over_samples(part.layout, one)
    names = [site.name for site in part.nodes]
    zeros = [jnp.zeros(site.shape, jnp.float32) for site in part.nodes]
    named = lambda values: dict(zip(names, values, strict=True))  # noqa: E731
    apart = singly(lambda *deltas: one(named(deltas)), zeros, linear)
    return lambda deltas: named(apart(*(deltas[name] for name in names)))


def mean_over_samples(run: Run, chunk):
    """Added up first and divided last, in float32: half precision loses neither."""
    layout = run.part.layout._replace(apart=run.apart)
    sums, _ = sum_over_draws(chunk, layout)
    return mean_of(sums, run.num_samples)


@jax.named_scope("bpfree.credit")
def signals(run: Run, weights, noise, rule) -> NodeTree:
    """{node of the part: rule(weights / B, score) / sigma}; rules: `sampling.noise`."""
    score = run.settings.plan.score or (lambda noise: noise)
    inverse = of_each(lambda sigma: 1 / sigma, run.sigma)
    return {
        name: scaled(inverse[name], rule(w, score(noise[name])))
        for name, w in credited(run, weights).items()
    }


def as_moved(run: Run, signals: NodeTree) -> NodeTree:
    """Signals of noise as it moved the values, see `as_felt`."""
    settings = run.settings
    signs = settings.plan.score is None and settings.derivative == "finite_difference"
    return {
        name: as_felt(signal, run.sigma[name], run.values[name], signs)
        for name, signal in signals.items()
    }


def slopes(run: Run, weights, noise) -> NodeTree:
    """{node: dJ / d log sigma}, summed over the samples; {} unless sigma is learned."""
    if run.settings.sigma_optimizer is None:
        return {}
    score, nodes = run.settings.plan.score, run.part.nodes
    return scale_slopes(credited(run, weights), noise, score, nodes)


def changes(run: Run, weights) -> NodeTree:
    """{nodes together: mean square of L_k - L_0, summed over the samples}."""
    settings = run.settings
    measured = settings.derivative == "finite_difference"
    if not (measured and settings.baseline.measures):
        return {}
    return {
        "/".join(site.name for site in nodes): summed_squares(w)
        for nodes, w in by_losses(run.part, weights)
    }


def summed_squares(change: jax.Array) -> jax.Array:
    """Mean square over the examples, summed over the samples in front."""
    return (at_least_float32(change).reshape(len(change), -1) ** 2).mean(1).sum()


def credited(run: Run, weights) -> NodeTree:
    """{node: weights / B of the samples, by its credit rule}."""
    credit, batch = run.settings.credit, run.args[1]
    found: NodeTree = {}
    for nodes, w in by_losses(run.part, weights):
        found |= rule_weights(credit, w / run.program.losses.size, nodes, batch)
    return found


def by_losses(part: layerwise.Part, found):
    """(nodes, what was found) for all nodes of the same losses; see `of_samples`."""
    if part.together:
        return [(part.nodes, found)]
    return [((site,), found[site.name]) for site in part.nodes]


def weigh(run: Run):
    """`(draws, () -> their losses) -> weights`, (samples, *loss shape), of each node."""
    settings, shape = run.settings, run.program.losses.shape
    baseline = settings.baseline
    noisy = losses(run) if baseline.whole else None

    def table(found):
        if baseline.clean and settings.derivative == "finite_difference":
            found = found - run.clean[None]
        if baseline.whole:
            found = found.astype(jnp.float32)
        return found.reshape(-1, settings.plan.group, *shape)

    def evaluate(draws):
        return jax.tree.map(table, noisy(deltas(run, draw(run, draws))))

    made = baselines.weigher(baseline, run.part.layout, evaluate)

    def weights(draws, losses):
        of_draws = made(draws, lambda: jax.tree.map(table, losses()))
        flat = lambda w: w.reshape(-1, *shape).astype(jnp.float32)  # noqa: E731
        return jax.tree.map(flat, of_draws)

    return weights
