"""One update of a perturbation estimator: its noise, its losses, and their weights."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.estimators import layerwise
from bpfree.estimators.derivative import linearized
from bpfree.estimators.settings import Settings
from bpfree.program import interpreter, passes, tangents
from bpfree.program.trace import NodeTree, Program
from bpfree.sampling import baselines
from bpfree.sampling.credit import rule_weights
from bpfree.sampling.loop import Layout, laid_out, over_samples, sum_over_draws
from bpfree.sampling.noise import draw_chunk
from bpfree.sampling.scale import scale_slopes, scaled


class Run(NamedTuple):
    """One update, and what the noisy passes of one part of it need of the clean one.

    Attributes:
      program: of the noisy passes; every node cuts it, also those that are not perturbed.
      sigma: {node: () or (channels,)}; None if no noise is injected.
      clean: losses of the clean pass, (B,) or (); None if there is none.
      values: of its nodes.
      part: the nodes perturbed together, and their draws.
      share: of this part in the mean over all parts.
      known: values of the clean pass's equations, if they serve several parts.
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
    known: interpreter.Known | None = None
    apart: bool = False

    @property
    def num_samples(self) -> int:
        return self.part.layout.num_draws * self.settings.plan.group


def split(run: Run) -> list[Run]:
    """One run for each part: all nodes, or each of them."""
    parts = layerwise.parts(run.settings.schedule, run.program)
    cached = len(parts) > 1 and not run.settings.noisy
    known = passes.clean_values(run.program, run.args) if cached else None
    share = 1 / len(parts)

    def one(part):
        program = moving(run, part.layout, part.names)
        return run._replace(program=program, part=part, share=share, known=known)

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
    """`deltas -> losses`, or their first-order change; samples in front of both."""
    one = passes.perturbed(run.program, run.args, run.part.names, run.known)
    if run.settings.derivative == "jvp":
        one = linearized(one, run.part.nodes)
    return over_samples(run.part.layout, one)


def mean_over_samples(run: Run, chunk):
    """Added up first and divided last, in float32: half precision loses neither."""
    layout = run.part.layout._replace(apart=run.apart)
    sums, _ = sum_over_draws(chunk, layout)
    return jax.tree.map(lambda total: total / run.num_samples, sums)


@jax.named_scope("bpfree.credit")
def signals(run: Run, weights, noise, rule) -> NodeTree:
    """{node of the part: rule(weights / B, score) / sigma}; rules: `sampling.noise`."""
    score = run.settings.plan.score or (lambda noise: noise)
    return {
        name: scaled(1 / run.sigma[name], rule(w, score(noise[name])))
        for name, w in beside(run, weights).items()
    }


def slopes(run: Run, weights, noise) -> NodeTree:
    """{node: dJ / d log sigma}, summed over the samples; {} unless sigma is learned."""
    if run.settings.sigma_optimizer is None:
        return {}
    score, nodes = run.settings.plan.score, run.part.nodes
    return scale_slopes(beside(run, weights), noise, score, nodes)


def changes(run: Run, weights) -> NodeTree:
    """{nodes of the part: mean square of L_k - L_0, summed over the samples}."""
    settings = run.settings
    compared = settings.baseline is baselines.CLEAN
    if not (compared and settings.derivative == "finite_difference"):
        return {}
    squares = weights.reshape(len(weights), -1) ** 2
    return {"/".join(sorted(run.part.names)): squares.mean(1).sum()}


def beside(run: Run, weights) -> NodeTree:
    """{node: weights / B of the samples, by its credit rule}."""
    weights = weights / run.program.losses.size
    return rule_weights(run.settings.credit, weights, run.part.nodes, run.args[1])


def weigh(run: Run):
    """`(draws, () -> their losses) -> weights`, (samples, *loss shape)."""
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
        return table(noisy(deltas(run, draw(run, draws))))

    made = baselines.weigher(baseline, run.part.layout, evaluate)

    def weights(draws, losses):
        of_draws = made(draws, lambda: table(losses()))
        return of_draws.reshape(-1, *shape).astype(jnp.float32)

    return weights
