"""One update of weight perturbation: its noise, its losses, and their weights."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.choices import Noise, check_choice
from bpfree.estimators import weight_noise
from bpfree.estimators.estimate import BAD_SIGMA, LOST_LOSS, NO_FAULT
from bpfree.estimators.faults import is_lost
from bpfree.estimators.settings import check_draws, find_baseline
from bpfree.program import interpreter, lowrank, rewriting, stops, tags
from bpfree.program.side_by_side import side_by_side
from bpfree.program.trace import split_aux
from bpfree.sampling.baselines import Baseline, Table, weigher
from bpfree.sampling.loop import Layout, in_chunks, own_kernels
from bpfree.sampling.noise import Plan, antithetic_plan
from bpfree.sampling.scale import Number, check_number, scale_at

BaselineChoice = (
    Literal["clean", "leave_one_out", "none", "standardise", "centred_ranks"]
    | Table
    | Baseline
)


class Settings(NamedTuple):
    """The arguments of `weight_perturbation`, checked; `pairs` is the plan of a draw."""

    plan: Plan
    pairs: Plan
    layout: Layout
    compared: Baseline
    rank: int | None
    sigma: Number
    hold_stop_gradient: bool


def make_settings(
    num_samples,
    sigma,
    chunk_size,
    antithetic,
    baseline,
    rank,
    noise,
    sharding,
    hold_stop_gradient=True,
) -> Settings:
    """Raises ValueError for what cannot be."""
    check_choice("noise", noise, Noise)
    compared = find_baseline(baseline)
    if compared.across:
        raise ValueError(
            "baseline='batch' compares examples, which share the noise of parameters"
        )
    check_number(sigma)
    weight_noise.check_rank(rank)
    plan = weight_noise.PLANS[noise]
    pairs = antithetic_plan(plan) if antithetic else plan
    layout = weight_noise.make_layout(pairs, rank, num_samples, chunk_size, sharding)
    if compared.whole:
        check_draws(layout.num_draws, pairs)
    return Settings(plan, pairs, layout, compared, rank, sigma, hold_stop_gradient)


class Run(NamedTuple):
    """One update after its clean pass.

    Attributes:
      draw: index -> noise of the parameters.
      losses: noise of draws -> (draws, samples of a draw).
      weigh: (draws, () -> their losses) -> weights of the same shape.
      signs: of the samples of a draw, (G,).
      scale: sigma of this step.
      together: the loop that credits.
      measures: whether weights are changes of the mean loss.
    """

    draw: Callable[[jax.Array], weight_noise.Noise]
    losses: Callable[[weight_noise.Noise], jax.Array]
    weigh: Callable[..., jax.Array]
    signs: jax.Array
    scale: jax.Array
    together: Layout
    measures: bool
    clean: jax.Array
    aux: Any

    def fault(self, squares) -> jax.Array:
        """Its code; `squares` is the mean square of the weights."""
        squares = tags.sum_shards(squares, self.clean, lax.pmean)
        lost = self.measures & is_lost(squares, self.clean.mean(), self.scale)
        code = jnp.where(lost, LOST_LOSS, NO_FAULT)
        return jnp.where(self.scale > 0, code, BAD_SIGMA)


def begin(loss_fn, settings: Settings, key, args, state, wanted) -> Run:
    plan, pairs, layout, compared, rank, sigma, held = settings
    traced = rewriting.to_jaxpr(loss_fn, args)
    loss_fn = rewriting.evaluator(traced)
    clean, aux = split_aux(loss_fn(*args))
    noisy = stops.held(loss_fn, args, traced) if held else loss_fn
    scale = scale_at(sigma, state.count)
    signs = jnp.asarray([1.0, -1.0][: pairs.group], jnp.float32)
    moved = weight_noise.moved(traced, args, wanted)
    together = weight_noise.credited_together(layout, rank, moved)
    key = tags.fold_in_shards(key, clean)

    def draw(index):
        return weight_noise.draw(plan, rank, key, index, moved)

    change = _change(noisy, args, clean, jax.eval_shape(draw, layout.num_draws), layout)
    centre = jnp.float32(0) if compared.clean else clean.mean().astype(jnp.float32)

    def losses(noise):
        return centre + in_chunks(layout, lambda z: change(z, signs * scale))(noise)

    def evaluate(draws):
        return losses(jax.vmap(draw)(draws))

    weigh = weigher(compared, layout, evaluate)
    measures = compared.measures
    return Run(draw, losses, weigh, signs, scale, together, measures, clean, aux)


def _change(loss_fn, args, clean, noise, layout):
    """`(noise, scales (G,)) -> (G,)`: mean loss at params + scale noise, less the clean.

    What no noise reaches is computed here: with factors, the first layer's x W.
    """

    def one(noise, scale):
        def mean_loss(params):
            losses = split_aux(loss_fn(params, *args[1:]))[0]
            return (losses.mean() - clean.mean()).astype(jnp.float32)  # for rounding

        return lowrank.evaluate(mean_loss, weight_noise.added(args[0], noise, scale))

    hoisted = interpreter.hoist(one, noise, jax.ShapeDtypeStruct((), jnp.float32))
    moved = own_kernels(layout, hoisted)
    return lambda noise, scales: side_by_side(partial(moved, noise))(scales)
