"""What teaches a predictor of gradients: noisy passes of the nodes, or derivatives.

See `learned_feedback`, whose residual q is

    q_l = 1/K sum_k z_lk ((L_k - L_0) / sigma - sum_m z_mk . g_hat_m)

With f_l the block of node l, of the values y that it reads, and V the predictor's
weights, "responses" and "jvp" teach by the misfit of the nodes' changes c_l,

    1 / (2 K B) sum_k sum_l |df_l(y; V) m_k - c_lk|^2

    responses    m = change of the values in a noisy pass, c_l = m_l without noise at l
    jvp          m = z,                                    c_l = df_l(y; theta) z
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bpfree.estimators import clean_pass
from bpfree.estimators.runs import summed_squares
from bpfree.program import passes, rewriting
from bpfree.program.tags import Site
from bpfree.program.trace import NodeTree, Program, split_aux
from bpfree.sampling import loop
from bpfree.sampling.noise import Plan, draw_chunk
from bpfree.sampling.scale import at_least_float32, scaled
from bpfree.sampling.weighting import credit


class Step(NamedTuple):
    """One update: the clean pass, the prediction from older weights, and the noise."""

    clean: clean_pass.Clean
    losses: jax.Array  # clean, (B,)
    noisy: Program
    predicted: NodeTree
    key: jax.Array
    sigma: jax.Array
    plan: Plan
    layout: loop.Layout

    @property
    def sites(self) -> tuple[Site, ...]:
        """The nodes that are perturbed."""
        return clean_pass.hidden(self.clean.program)


def residual_of(step: Step) -> tuple[NodeTree, NodeTree]:
    """q, from the losses of the noisy passes alone; {"losses": how they change}."""
    losses = passes.perturbed(step.noisy, step.clean.args)
    evaluate = loop.over_samples(step.layout, losses)

    def chunk(draws):
        noise = draw_chunk(step.plan, step.key, draws, step.sites)
        noisy = evaluate({name: scaled(step.sigma, z) for name, z in noise.items()})
        return _residual(step, noise, noisy), ()

    return loop.mean_of(loop.sum_over_draws(chunk, step.layout)[0], _samples(step))


def residual_and_misfit(step: Step, predictor, weights, residual: bool):
    """`residual_of`, and the slope of the error of `respond` on the noisy passes.

    Without `residual` both of it are {}, and the noisy passes end at the last node.
    """
    names = [site.name for site in step.clean.program.nodes]
    if predictor.models == "rest":
        names = names[-1:]

    def observe(noise):
        deltas = {name: scaled(step.sigma, z) for name, z in noise.items()}
        out, values = passes.cut(step.noisy, step.clean.args, deltas)
        clean = step.clean.values
        change = {k: _change(values[k], clean[k], step.sigma) for k in names}
        moves = {k: z.astype(clean[k].dtype) for k, z in noise.items()}
        if predictor.models == "blocks":
            moves = {k: c + moves[k] if k in moves else c for k, c in change.items()}
        return split_aux(out)[0], moves, change

    def chunk(draws):
        noise = draw_chunk(step.plan, step.key, draws, step.sites)
        noisy, moves, change = loop.over_samples(step.layout, observe)(noise)
        slope = _slope(step, predictor, weights, moves, change)
        return (_residual(step, noise, noisy) if residual else ({}, {}), slope), ()

    apart = loop.own_kernels(step.layout, chunk)
    credited, slope = loop.sum_over_draws(apart, step.layout)[0]
    slope = _mean_slope(step, predictor, slope, weights)
    return loop.mean_of(credited, _samples(step)), slope


def misfit_of_derivatives(step: Step, predictor, weights):
    """The slope of the mean squared error of `respond` on the blocks' derivatives.

    One forward derivative of the program cut at the nodes has those of all blocks: what
    moves at a node ends in the blocks that read it.
    """
    at, error = _error(step, predictor, weights)

    def chunk(draws):
        noise = draw_chunk(step.plan, step.key, draws, step.sites)
        values = step.clean.values
        moves = {name: z.astype(values[name].dtype) for name, z in noise.items()}

        def errors(at):
            return loop.over_samples(step.layout, partial(error, at))(moves)

        missed, vjp = jax.vjp(errors, at)
        return jax.tree.map(at_least_float32, vjp(missed)[0]), ()

    slope = loop.sum_over_draws(loop.own_kernels(step.layout, chunk), step.layout)[0]
    return _mean_slope(step, predictor, slope, weights)


def _error(step: Step, predictor, weights):
    """(x, (x, moves) -> df(y; V) z - df(y; theta) z at the ends of the blocks); x is V.

    Where a block is affine in its parameters, that is its derivative by them, in the
    direction x = V - theta: one product in place of two, and no difference of large
    numbers.
    """
    params = step.clean.args[0]
    of_blocks = clean_pass.responses

    def apart(weights, moves):
        guess = predictor.respond(weights, step.clean, moves)
        return jax.tree.map(jnp.subtract, guess, of_blocks(params, step.clean, moves))

    if predictor.respond is not of_blocks:
        return weights, apart

    def along(params, direction, moves):
        one = partial(of_blocks, clean=step.clean, moves=moves)
        return jax.jvp(one, (params,), (direction,))[1]

    direction = jax.tree.map(jnp.subtract, weights, params)
    moves = {s.name: step.clean.values[s.name] for s in step.sites}
    read = rewriting.reads(along, params, direction, moves)
    affine = not any(read[: len(jax.tree.leaves(params))])
    return (direction, partial(along, params)) if affine else (weights, apart)


def _slope(step: Step, predictor, weights, moves: NodeTree, change: NodeTree):
    """By the weights, of half the squared error of the responses to these moves."""

    def respond(weights):
        one = partial(predictor.respond, weights, step.clean)
        guess = loop.over_samples(step.layout, one)(moves)
        return {name: guess[name] for name in change}

    guess, vjp = jax.vjp(respond, weights)
    slope = vjp(jax.tree.map(jnp.subtract, guess, change))[0]
    return jax.tree.map(at_least_float32, slope)


def _mean_slope(step: Step, predictor, slope, weights):
    count = _samples(step) * (step.clean.program.batch_size or 1)
    if predictor.models == "rest":  # the noise that a change answers to: see `direct`
        sizes = (math.prod(s.shape[a] for a in s.example_axes) for s in step.sites)
        count += sum(sizes)
    slope = loop.mean_of(slope, count)
    return jax.tree.map(lambda s, w: s.astype(w.dtype), slope, weights)


@jax.jit  # one function in the program for all nodes of a shape, as those below
def _change(noisy, clean, sigma):
    return (noisy - clean) / sigma.astype(noisy.dtype)


def _residual(step: Step, noise: NodeTree, noisy: jax.Array) -> tuple[NodeTree, NodeTree]:
    """Sums over the chunk's samples, of z r and of the mean squared change."""
    change = summed_squares(noisy - step.losses[None]).astype(jnp.float32)
    return _credit(step, noise, noisy), {"losses": change}


def _credit(step: Step, noise: NodeTree, noisy: jax.Array) -> NodeTree:
    """Sum over the chunk's samples of z r; noisy losses are (samples, B)."""
    rest = (noisy - step.losses[None]).astype(jnp.float32) / step.sigma
    alone = [s for s in step.sites if s.batch_axis is not None]
    shared = [s for s in step.sites if s.batch_axis is None]
    guessed = {
        s.name: _guessed(noise[s.name], step.predicted[s.name], s.example_axes)
        for s in step.sites
    }
    for s in alone:
        rest = rest - guessed[s.name]
    total = rest.sum(1)  # for shared nodes all examples answer together
    for s in shared:
        total = total - guessed[s.name]
    return {
        **{s.name: credit(rest, noise[s.name], s.batch_axis) for s in alone},
        **{s.name: credit(total, noise[s.name], None) for s in shared},
    }


@partial(jax.jit, static_argnums=2)
def _guessed(noise, predicted, axes: tuple[int, ...]) -> jax.Array:
    """What the prediction says of each sample's noise: z . g_hat over these axes."""
    change = noise * predicted.astype(jnp.float32)[None]
    return change.sum(tuple(i + 1 for i in axes))


def _samples(step: Step) -> int:
    return step.layout.num_draws * step.plan.group


def filled(residual: NodeTree, predicted: NodeTree, scale, of_predicted=0.0) -> NodeTree:
    """scale * residual + of_predicted * predicted at every node."""

    scales = jnp.asarray(scale), jnp.asarray(of_predicted)
    return {k: _filled(*scales, residual.get(k), g) for k, g in predicted.items()}


@jax.jit
def _filled(scale, of_predicted, residual, predicted):
    total = of_predicted * predicted
    if residual is not None:
        total = total + scale * residual.astype(predicted.dtype)
    return total
