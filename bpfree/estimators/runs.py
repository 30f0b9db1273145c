"""One update of a perturbation estimator: its noise, its losses, and their weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.estimators import layerwise
from bpfree.estimators.derivative import linearized
from bpfree.estimators.settings import Encode, Settings
from bpfree.program import interpreter, passes
from bpfree.program.trace import NodeTree, Program
from bpfree.sampling.credit import rule_weights
from bpfree.sampling.loop import laid_out, over_samples, sum_over_draws
from bpfree.sampling.noise import draw_chunk
from bpfree.sampling.scale import each_once, scale_slopes, scaled


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
    cached = len(parts) > 1 and run.settings.pairing == "clean"
    known = passes.clean_values(run.program, run.args) if cached else None
    share = 1 / len(parts)

    def one(part):
        program = run.program
        if run.settings.derivative == "finite_difference":
            program = laid_out(program, part.layout, part.names)
        return run._replace(program=program, part=part, share=share, known=known)

    return [one(part) for part in parts]


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


def signals(run: Run, weights, noise, rule) -> NodeTree:
    """{node of the part: rule(weights / B, score) / sigma}; rules: `sampling.noise`."""
    score = run.settings.plan.score or (lambda noise: noise)
    inverse = each_once(lambda sigma: 1 / sigma, run.sigma)
    return {
        name: scaled(inverse[name], rule(w, score(noise[name])))
        for name, w in beside(run, weights).items()
    }


def slopes(run: Run, weights, noise) -> NodeTree:
    """{node: dJ / d log sigma}, summed over the samples; {} unless sigma is learned."""
    if run.settings.sigma_optimizer is None:
        return {}
    score, nodes = run.settings.plan.score, run.part.nodes
    return scale_slopes(beside(run, weights), noise, score, nodes)


def beside(run: Run, weights) -> NodeTree:
    """{node: weights / B of the samples, by its credit rule}."""
    weights = weights / run.program.losses.size
    return rule_weights(run.settings.credit, weights, run.part.nodes)


def encoded(encode: Encode, tree):
    return tree if encode is None else jax.tree.map(encode, tree)


# --------------------------------------------------------------------------- baselines


def weigh(run: Run):
    """`(draws, losses of the chunk) -> centred losses`, (samples, B) or (samples,)."""
    baseline, encode = run.settings.baseline, run.settings.encode_weights
    if baseline == "leave_one_out":
        table = _left_out(run)
        shape = run.program.losses.shape
        return lambda draws, losses: encoded(encode, table[draws].reshape(-1, *shape))

    def centred(draws, losses):
        found = losses()
        if baseline == "clean" and run.settings.derivative == "finite_difference":
            found = found - run.clean[None]
        if baseline == "batch":
            found = found - _others(found)
        return encoded(encode, found.astype(jnp.float32))

    return centred


def _others(losses: jax.Array) -> jax.Array:
    """For each example the mean loss of all others in the same sample; (K, B).

    With its own loss in the mean, an example's term would shrink by 1 - 1/B.
    """
    total = losses.sum(1, keepdims=True)
    return (total - losses) / (losses.shape[1] - 1)


def _left_out(run: Run) -> jax.Array:
    """L_k minus the mean loss of all other draws, for every sample: (draws, G, B).

    The whole draw is left out, not the sample alone: its members share noise, and a
    baseline that depends on a sample's noise would bias its term. Takes the losses of all
    samples before the first is credited, so noise is drawn twice.
    """
    found = losses(run)
    group = run.settings.plan.group

    def chunk(draws):
        table = found(deltas(run, draw(run, draws)))
        table = table - run.clean[None]  # a shift, for rounding
        return (), table.reshape(-1, group, *run.clean.shape).astype(jnp.float32)

    table = sum_over_draws(chunk, run.part.layout)[1]
    of_draw = table.sum(1, keepdims=True)
    others = (of_draw.sum(0, keepdims=True) - of_draw) / (table.shape[0] * group - group)
    return table - others
