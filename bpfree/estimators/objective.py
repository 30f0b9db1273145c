"""What an estimator minimises: a loss function, or an energy; and how it is handed over.

`of_losses` and `of_energy` make an `Estimator` of what a family writes. They refuse the
other kind of objective, split the key, check the losses, and flag what is not finite.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from bpfree.estimators.estimate import BAD_LOSS, BAD_SIGMA, Estimate, Estimator
from bpfree.program.trace import LossFn, arguments, check_losses, split_aux


@runtime_checkable
class EnergyLike(Protocol):
    """What `bpfree.equilibrium.Energy` has, and a loss function has not."""

    @property
    def weighted(self) -> Callable[..., jax.Array]: ...


Objective = LossFn | EnergyLike
Family = Callable[..., Estimate]
"""What a family writes; the `value` of its Estimate may be the losses themselves."""


def of_losses(
    loss_fn: LossFn, estimate: Family, init: Callable[[Any], Any] = lambda params: ()
) -> Estimator:
    """The estimator of a loss function.

    Args:
      estimate: `(key, args, state, wanted) -> Estimate`, with a key for its noise, and
        the arguments of `loss_fn`: (params, batch), or (params, batch, key) with a key
        that all passes of the step share.
      init: `params -> state` of the estimator.
    """
    check_loss_fn(loss_fn)

    def checked(key, params, batch, state, wanted=None) -> Estimate:
        noise_key, args = split(loss_fn, key, params, batch)
        return _checked(estimate(noise_key, args, state, wanted))

    return Estimator(init, checked)


def of_energy(
    energy: EnergyLike, estimate: Family, init: Callable[[Any], Any] = lambda params: ()
) -> Estimator:
    """The estimator of an energy, of `estimate`: `(key, params, batch, state)`."""
    check_energy(energy)

    def checked(key, params, batch, state, wanted=None) -> Estimate:
        del wanted
        return _checked(estimate(key, params, batch, state))

    return Estimator(init, checked)


def split(loss_fn: LossFn, key, params, batch) -> tuple[jax.Array, tuple]:
    """(key of the noise, arguments of the loss function) of a step's key."""
    noise_key, loss_key = jax.random.split(key)
    return noise_key, arguments(loss_fn, params, batch, loss_key)


def mean_loss(loss_fn: LossFn, args: tuple) -> Callable[[Any], tuple[jax.Array, Any]]:
    """`params -> (mean of the losses, (losses, aux))`, of the other arguments."""

    def mean(params):
        losses, aux = split_aux(loss_fn(params, *args[1:]))
        losses = jnp.asarray(losses)
        return losses.mean(), (losses, aux)

    return mean


def _checked(found: Estimate) -> Estimate:
    """With the mean of the losses as its value, and their fault.

    A loss that is not finite explains a sigma that is too small and an equilibrium that
    is not reached, but not a node before it, nor a sigma that is no positive number.
    """
    check_losses(found.value)
    value, fault = found.value.mean(), jnp.asarray(found.fault, jnp.int32)
    explains = (fault < 0) & (fault != BAD_SIGMA) & ~jnp.isfinite(value)
    fault = jnp.where(explains, jnp.int32(BAD_LOSS), fault)
    return found._replace(value=value.astype(jnp.float32), fault=fault)


# ------------------------------------------------------------------------------- kinds


def is_energy(objective: Any) -> bool:
    return isinstance(objective, EnergyLike)


def check_loss_fn(objective: Any) -> None:
    """TypeError for an energy, and for what is no function."""
    if is_energy(objective):
        raise TypeError(
            "this needs a loss function, (params, batch) -> losses, and got an energy; "
            "the estimators of energies are bpfree.equilibrium_propagation and its kin"
        )
    if not callable(objective):
        raise TypeError(
            "this needs a loss function, (params, batch) -> losses, and got a "
            f"{type(objective).__name__}"
        )


def check_energy(objective: Any) -> None:
    """TypeError for what is no energy."""
    if not is_energy(objective):
        raise TypeError(
            "equilibrium propagation needs an energy, bpfree.layered(...) or "
            f"bpfree.primitive(...), not a {type(objective).__name__}"
        )
