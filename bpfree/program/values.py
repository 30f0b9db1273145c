"""What `find` knows of the values of a program, and how a result's follows from them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.program import axes, contractions, tags
from bpfree.program.flat import Op
from bpfree.program.place import LOST, Place, Somewhere, axes_of, on_axes


class Value(NamedTuple):
    """What is known of a value; parameters and nodes are bits of whole numbers.

    `mixed` are the nodes of `noise` whose noise of one example reaches several here.
    """

    own: int = 0
    past: int = 0
    decides: int = 0
    noise: int = 0
    mixed: int = 0
    data: bool = False
    place: Somewhere = None
    const: np.ndarray | None = None
    columns: tuple[np.ndarray | None, ...] = ()

    @property
    def trains(self) -> int:
        return self.own | self.past

    def frozen(self) -> "Value":
        """The same where no parameter trains."""
        return self._replace(own=0, past=0, decides=0)

    def mixing(self) -> "Value":
        """The same where examples meet, or can no longer be told apart."""
        return self._replace(mixed=self.mixed | self.noise, place=LOST)

    def deciding(self) -> "Value":
        """The same where no derivative passes."""
        return self._replace(own=0, past=0, decides=self.decides | self.trains)

    def at_node(self, noise: int = 0) -> "Value":
        """The same, which no derivative reaches beyond this node, with its noise."""
        return self._replace(own=0, past=0, noise=self.noise | noise)


def join(values: Sequence[Value]) -> Value:
    own = past = decides = noise = mixed = 0
    for v in values:
        own, past, decides = own | v.own, past | v.past, decides | v.decides
        noise, mixed = noise | v.noise, mixed | v.mixed
    return Value(own, past, decides, noise, mixed, any(v.data for v in values))


def typed(value: Value, aval) -> Value:
    """A result without a derivative (an index, a comparison) only decides.

    One without entries says nothing.
    """
    if 0 in aval.shape:
        return Value()
    if jnp.issubdtype(aval.dtype, jnp.inexact):
        return value
    return value.deciding()


def placed(op: Op, ins: Sequence[Value], batch: int | None, exchange: bool) -> Value:
    """The operands joined, with the place of the examples in the result.

    With `exchange` a matrix may exchange the values of a graph's nodes.
    """
    joined, columns = join(ins), ins[1].columns if len(ins) > 1 else ()
    moved = []
    for i, value in enumerate(ins):
        if batch is None or value.place is None:
            continue
        at = axes.moved(op.eqn, i, value.place, batch, columns)
        if at is LOST and exchange:
            at = contractions.exchanged(op.eqn, i, value.place, batch)
        moved.append((value, at))
    found = [at for _, at in moved if at is not LOST]
    noisy = [at for value, at in moved if value.noise and at is not LOST]
    place = noisy[0] if noisy else min(found, key=axes_of, default=None)
    mixed = joined.mixed
    for value, at in moved:
        if at != place or at is LOST:
            mixed |= value.noise
    return joined._replace(place=place, mixed=mixed)


def into_loop(value: Value, sliced: bool) -> Value:
    """A value in the body of a scan, where places on the axis of steps are negative."""

    def entered(at: Place, _) -> Somewhere:
        if not (sliced or at.axis < 0):
            return at
        whole = at.axis > 0 or (at.outer, at.inner) == (1, 1)
        return at._replace(axis=at.axis - 1) if whole else LOST

    at = on_axes(value.place, entered, 0)
    if at is LOST and value.place is not None:
        value = value.mixing()
    return value._replace(place=at, const=None, columns=())


def out_of_loop(value: Value, stacked: bool) -> Value:
    def left(at: Place, _) -> Place:
        return at._replace(axis=at.axis + (stacked or at.axis < 0))

    place = on_axes(value.place, left, 0)
    return value._replace(place=place, const=None, columns=())


def carried(start: Value, end: Value) -> Value:
    """What a loop carries, or one of several branches gives."""
    joined = join([start, end])._replace(const=None, columns=())
    place = start.place if end.place is None else end.place
    if start.place is not None and end.place not in (None, start.place):
        joined = joined.mixing()
        place = start.place if start.noise else end.place
    if end.place is None and end.noise and start.place is not None:
        place = LOST
    if place is not None and -1 in axes_of(place):  # the steps would meet in the carry
        return joined.mixing()
    return joined._replace(place=place)


def bits_of(mask: int) -> tuple[int, ...]:
    return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)


_LARGEST = 2**16  # entries of a constant that is evaluated


def small(value: Any) -> np.ndarray | None:
    """A whole-numbered constant, if it is small enough to look at."""
    kind = jnp.result_type(value)
    if not (jnp.issubdtype(kind, jnp.integer) or kind == jnp.bool_):
        return None
    return np.asarray(value) if np.size(value) <= _LARGEST else None


def known(op: Op, ins: Sequence[Value]):
    """(constant, columns of an index) of a result made of constants."""
    aval = op.eqn.outvars[0].aval
    if len(op.outs) > 1 or jnp.issubdtype(aval.dtype, jnp.inexact) or op.eqn.effects:
        return None, ()
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
        return None, ()
    columns: tuple[Any, ...] = ()
    if op.name == "concatenate" and op.eqn.params["dimension"] == aval.ndim - 1:
        sizes = [v.aval.shape[-1] for v in op.eqn.invars]
        parts = zip(ins, sizes, strict=True)
        columns = tuple(c for v, n in parts for c in _columns(v.const, n))
    elif len(ins) == 1 and op.name == "convert_element_type":
        columns = ins[0].columns
    unknown = any(v.const is None for v in ins) or tags.varying(aval)
    if math.prod(aval.shape) > _LARGEST or unknown:
        return None, columns
    with jax.ensure_compile_time_eval():
        const = np.asarray(tags.bind_eqn(op.eqn, [v.const for v in ins])[0])
    return const, _columns(const, const.shape[-1]) if const.ndim else ()


def _columns(const: np.ndarray | None, size: int) -> tuple[np.ndarray | None, ...]:
    return tuple(None if const is None else const[..., k] for k in range(size))
