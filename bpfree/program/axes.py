"""Where the examples of a batch stand in a value: rules for each primitive.

A `Place` says that axis `axis` of a value counts `outer * B * inner` entries, of which
entry `(o * B + b) * inner + i` belongs to example b. `moved` maps the place of an operand
to that of the result, or says that it is lost: entries of different examples meet (a sum
over the batch), or change their order (a sort). Negative axes belong to enclosing scans:
-1 is the axis of the steps of the innermost one. A reshape may lay the examples out on
several axes (`Parts`), which are followed apart until another one brings them together.
"""

from collections.abc import Callable
from typing import Any

from bpfree.program import contractions, indexing
from bpfree.program.place import LOST, Parts, Place, Somewhere, on_axes
from bpfree.program.reshaping import reshaped

Rule = Callable[..., Place | None]
"""rule(eqn, i, place, batch, columns) -> place in the results, of operand i."""


def moved(eqn, i: int, place: Place | Parts, batch: int, columns) -> Somewhere:
    """The place in the results of what stands at `place` in operand `i`, or LOST.

    Args:
      batch: number of examples.
      columns: of the index operand of a gather, what is known of each column.
    """
    name = eqn.primitive.name
    if name in _ELEMENTWISE:
        return place
    if isinstance(place, Parts):
        return on_axes(place, lambda at, n: moved(eqn, i, at, n, columns), batch)
    if place.axis < 0:
        return place
    rule = _RULES.get("cum" if name.startswith("cum") else name)
    return rule(eqn, i, place, batch, columns) if rule else LOST


_ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e
    bessel_i1e bessel_j1 bitcast_convert_type bpfree_tag cbrt ceil clamp clz complex
    conj convert_element_type copy copy_p cos cosh device_put digamma div eq eq_to erf
    erf_inv erfc exp exp2 expm1 floor from_edtype ge gt igamma igamma_grad_a igammac
    imag integer_pow is_finite layout_constraint le le_to lgamma log log1p log2
    logistic lt lt_to max min mul mulhi name ne neg nextafter not one_minus_square
    optimization_barrier or pcast polygamma polynomial population_count pow pvary
    random_bits random_fold_in random_gamma random_seed random_split random_unwrap
    random_wrap real reciprocal reduce_precision reduced_vary_cast
    regularized_incomplete_beta relayout rem reshard round rsqrt select_n
    sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin
    sinh sqrt square stop_gradient sub tan tanh threefry2x32 tie to_edtype
    with_memory_space_constraint xla_metadata_value xor zeta""".split()
)


def _broadcast(eqn, i, place, batch, columns):
    axis = eqn.params["broadcast_dimensions"][place.axis]
    size = eqn.invars[0].aval.shape[place.axis]
    return place._replace(axis=axis) if eqn.params["shape"][axis] == size else LOST


def _reshape(eqn, i, place, batch, columns):
    if eqn.params.get("dimensions") is not None:
        return LOST
    shape = eqn.invars[0].aval.shape
    return reshaped(place, shape, eqn.params["new_sizes"], batch)


def _tile(eqn, i, place, batch, columns):
    """Whole copies of an axis follow each other."""
    return place._replace(outer=place.outer * eqn.params["reps"][place.axis])


def _expand(eqn, i, place, batch, columns):
    new = set(eqn.params["dimensions"])
    kept = [a for a in range(eqn.outvars[0].aval.ndim) if a not in new]
    return place._replace(axis=kept[place.axis])


def _transpose(eqn, i, place, batch, columns):
    return place._replace(axis=eqn.params["permutation"].index(place.axis))


def _axes_of(eqn, name: str) -> list[int]:
    """The axes that a parameter names; the last one where JAX has none."""
    axes = eqn.params.get(name, -1)
    ndim = eqn.invars[0].aval.ndim
    return [a % ndim for a in ((axes,) if isinstance(axes, int) else axes)]


def _not_along(name: str) -> Rule:
    def rule(eqn, i, place, batch, columns):
        return LOST if place.axis in _axes_of(eqn, name) else place

    return rule


def _removed(name: str) -> Rule:
    """Axes that the result does not have."""

    def rule(eqn, i, place, batch, columns):
        gone = _axes_of(eqn, name)
        if place.axis in gone:
            return LOST
        return place._replace(axis=place.axis - sum(a < place.axis for a in gone))

    return rule


def _stack(eqn, i, place, batch, columns):
    return place._replace(axis=place.axis + (eqn.params["axis"] <= place.axis))


def _concatenate(eqn, i, place, batch, columns):
    """Along the examples' axis whole copies of the batch follow each other."""
    if eqn.params["dimension"] != place.axis:
        return place
    total, odd = divmod(eqn.outvars[0].aval.shape[place.axis], batch * place.inner)
    sizes = {v.aval.shape[place.axis] % (batch * place.inner) for v in eqn.invars}
    return LOST if odd or sizes != {0} else place._replace(outer=total)


def _cut(place: Place, batch: int, start: int, stop: int) -> Place | None:
    """Entries start to stop of the axis: whole copies of the batch, or lost."""
    unit = batch * place.inner
    if start % unit or stop % unit or stop <= start:
        return LOST
    return place._replace(outer=(stop - start) // unit)


def _slice(eqn, i, place, batch, columns):
    stride = (eqn.params["strides"] or [1] * (place.axis + 1))[place.axis]
    start, stop = (eqn.params[k][place.axis] for k in ("start_indices", "limit_indices"))
    if stride == 1:
        return _cut(place, batch, start, stop)
    rows = eqn.outvars[0].aval.shape[place.axis]  # one of each example's, of all copies
    alone = stride == place.inner and start < stride and rows == place.outer * batch
    return place._replace(inner=1) if alone else LOST


def _split(eqn, i, place, batch, columns):
    if eqn.params["axis"] != place.axis:
        return place
    if len(set(eqn.params["sizes"])) > 1:
        return LOST
    return _cut(place, batch, 0, eqn.params["sizes"][0])


def _whole(eqn, i, place, batch, columns):
    """Slices that take the examples' axis whole (operands: value, update, indices)."""
    values = (*eqn.invars[:2], eqn.outvars[0])
    sizes = {v.aval.shape[place.axis] for v in values if v.aval.ndim}
    return place if len(sizes) == 1 and i < 2 else LOST


def _pad(eqn, i, place, batch, columns):
    untouched = eqn.params["padding_config"][place.axis] == (0, 0, 0)
    return place if untouched and i == 0 else LOST


def _window(eqn, i, place, batch, columns):
    p, axis = eqn.params, place.axis
    alone = p["window_dimensions"][axis] == 1 and p["window_strides"][axis] == 1
    pads = tuple(p["padding"][axis]) == (0, 0)
    dilations = [p.get(k) for k in ("base_dilation", "window_dilation")]
    plain = all(d is None or d[axis] == 1 for d in dilations)
    return place if alone and pads and plain else LOST


def _leading(count: Callable[[Any], int]) -> Rule:
    """Operations on the last axes, for each index of the others."""

    def rule(eqn, i, place, batch, columns):
        return place if place.axis < eqn.invars[i].aval.ndim - count(eqn) else LOST

    return rule


_RULES: dict[str, Rule] = {
    "argmax": _removed("axes"),
    "argmin": _removed("axes"),
    "broadcast_in_dim": _broadcast,
    "cholesky": _leading(lambda eqn: 2),
    "concatenate": _concatenate,
    "conv_general_dilated": contractions.conv,
    "cum": _not_along("axis"),  # cumsum, cumprod, ...
    "dot_general": contractions.dot,
    "dynamic_slice": _whole,
    "dynamic_update_slice": _whole,
    "eigh": _leading(lambda eqn: 2),
    "expand_dims": _expand,
    "fft": _leading(lambda eqn: len(eqn.params["fft_lengths"])),
    "gather": indexing.gather,
    "lu_pivots_to_permutation": _leading(lambda eqn: 1),
    "pad": _pad,
    "ragged_dot": contractions.ragged_dot,
    "ragged_dot_general": contractions.ragged_dot,
    "reshape": _reshape,
    "rev": _not_along("dimensions"),
    "sort": _not_along("dimension"),
    "split": _split,
    "slice": _slice,
    "squeeze": _removed("dimensions"),
    "stack": _stack,
    "reduce": _removed("dimensions"),
    "approx_top_k": _not_along("reduction_dimension"),
    "tile": _tile,
    "top_k": _not_along("axis"),
    "transpose": _transpose,
    "triangular_solve": contractions.triangular_solve,
    "unstack": _removed("axis"),
}
_RULES |= dict.fromkeys(
    """eig geqrf hessenberg householder_product lu qr schur svd symmetric_product
    tridiagonal tridiagonal_solve""".split(),
    _leading(lambda eqn: 2),
)
_RULES |= dict.fromkeys(
    """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or
    reduce_xor""".split(),
    _removed("axes"),
)
_RULES |= dict.fromkeys(
    "reduce_window reduce_window_sum reduce_window_max reduce_window_min".split(), _window
)
_RULES |= dict.fromkeys(
    "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max".split(),
    indexing.scatter,
)
