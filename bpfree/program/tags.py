"""The tag primitive, and all we know about jaxprs.

A tag is the identity with a label; `interpreter` reads it. Everything that differs
between JAX versions is in this file.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend import core as jcore
from jax.interpreters import ad, batching, mlir, partial_eval

INPUT = "input of "  # begins the names of the values that kernels multiply
STOPPED = "stop_gradient"  # name of the holds at a stop_gradient
MEAN = "mean of "  # begins the names of statistics of the batch
SHARES = "shares of "  # begins the names of the examples' shares in a statistic
NOISE = ("weight", "auto")  # kinds of tags on parameters that say where noise goes
INFERRED = "inferred"  # batch axis of a node that `find` reads from the program


class Site(NamedTuple):
    """One tagged value as the whole program sees it (scanned values are stacked)."""

    name: str
    kind: str  # "node", "input", "hold", "statistic", "shares" or one of NOISE
    batch_axis: int | None  # INFERRED until `find` has read it
    shape: tuple[int, ...]
    dtype: Any
    steps: int = 0  # leading axes that loops around the tag have added

    @property
    def example_axes(self) -> tuple[int, ...]:
        """The axes of `shape` that belong to one example: all but the batch's."""
        return tuple(i for i in range(len(self.shape)) if i != self.batch_axis)


# --------------------------------------------------------------------- the primitive

tag_p = jcore.Primitive("bpfree_tag")
tag_p.def_impl(lambda x, **params: x)
tag_p.def_abstract_eval(lambda x, **params: x)
mlir.register_lowering(tag_p, lambda ctx, x, **params: [x])


def tagged(x: Any, kind: str, name: str | None = None, batch_axis: Any = None) -> Any:
    return tag_p.bind(x, kind=kind, name=name, batch_axis=batch_axis)


def _tag_batcher(args, dims, *, batch_axis, **params):
    (x,), (d,) = args, dims
    if batch_axis is not None and batch_axis != INFERRED:
        batch_axis += d <= batch_axis
    return tag_p.bind(x, batch_axis=batch_axis, **params), d


def _tag_jvp(primals, tangents, **params):
    # Only the primal keeps its tag: a derivative taken inside a loss marks nothing new.
    return tag_p.bind(*primals, **params), tangents[0]


batching.primitive_batchers[tag_p] = _tag_batcher
ad.primitive_jvps[tag_p] = _tag_jvp


# ------------------------------------------------------------- reading nested jaxprs


def open_jaxpr(jaxpr) -> tuple[Any, Sequence[Any]]:
    """Jaxpr and constants of an open or closed jaxpr (one class from JAX 0.12 on)."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def sub_jaxprs(eqn) -> list[Any]:
    return [open_jaxpr(j)[0] for j in jcore.jaxprs_in_params(eqn.params)]


def contains(jaxpr, wanted: Callable[[Any], bool]) -> bool:
    """Whether a primitive is wanted, at any depth."""
    return any(
        wanted(eqn.primitive) or any(contains(j, wanted) for j in sub_jaxprs(eqn))
        for eqn in jaxpr.eqns
    )


def has_tags(jaxpr) -> bool:
    return contains(jaxpr, lambda primitive: primitive is tag_p)


def has_custom_vjp(jaxpr) -> bool:
    """Whether there is a derivative that is known in reverse mode only."""
    return contains(jaxpr, is_custom_vjp)


def is_custom_vjp(primitive) -> bool:
    """Whether it has a rule for cotangents alone."""
    return "custom_vjp" in primitive.name


INLINED = {"jit", "pjit", "closed_call", "core_call"}
REMAT = {"checkpoint", "remat", "remat2"}


def body_of(eqn) -> tuple[Any, Sequence[Any]]:
    """Jaxpr and constants of the body of a jit, remat or scan equation."""
    return open_jaxpr(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))


def find_sites(jaxpr) -> list[Site]:
    """The tags of a jaxpr in program order, names as written (None, repeated, ...)."""
    sites: list[Site] = []
    for eqn in jaxpr.eqns:
        if eqn.primitive is tag_p:
            aval = eqn.invars[0].aval
            sites.append(Site(**eqn.params, shape=aval.shape, dtype=aval.dtype))
        elif any(map(has_tags, sub_jaxprs(eqn))):
            inner = _sites_inside(eqn)
            if eqn.primitive.name == "scan":
                inner = [_stacked(s, eqn.params["length"]) for s in inner]
            sites += inner
    return sites


def _sites_inside(eqn) -> list[Site]:
    name = eqn.primitive.name
    if name in INLINED or name in REMAT or name == "scan":
        return find_sites(body_of(eqn)[0])
    found = [s for j in sub_jaxprs(eqn) for s in find_sites(j)]
    if name == "cond" and all(s.kind == "hold" for s in found):
        return found
    first = found[0]
    raise NotImplementedError(
        f"node {first.name!r} is inside `{name}`; bpfree reads nodes in straight code, "
        "jit, vmap, scan and remat. Move the node out of it (mark the value that enters "
        "or leaves)."
    )


def _stacked(site: Site, length: int) -> Site:
    axis = site.batch_axis
    moved = axis + 1 if isinstance(axis, int) else axis
    shape = (length, *site.shape)
    return site._replace(batch_axis=moved, shape=shape, steps=site.steps + 1)


def dce(jaxpr, used_outputs: Sequence[bool]) -> tuple[Any, list[bool]]:
    """The jaxpr without what the chosen outputs do not need, and which inputs they do."""
    return partial_eval.dce_jaxpr(jaxpr, list(used_outputs))[:2]


def pruned(jaxpr):
    """The jaxpr without equations that no output needs, with all of its inputs."""
    needed = [True] * len(jaxpr.outvars)
    return partial_eval.dce_jaxpr(jaxpr, needed, instantiate=True)[0]


def varying(aval) -> tuple[str, ...]:
    """The axes of a `shard_map` around us over which a value differs."""
    manual = getattr(aval, "manual_axis_type", None)
    return tuple(sorted(manual.varying)) if manual else ()


def zeros(aval) -> jax.Array:
    """Zeros of the shape and type of `aval`, varying over the same mesh axes."""
    made = jax.numpy.zeros(aval.shape, aval.dtype)
    axes = varying(aval)
    return lax.pcast(made, axes, to="varying") if axes else made


def fold_in_shards(key: jax.Array, like: Any) -> jax.Array:
    """A different key for each device of a `shard_map` over which `like` differs.

    `like` is an array, or the aval of one.
    """
    for axis in varying(getattr(like, "aval", like)):
        key = jax.random.fold_in(key, lax.axis_index(axis))
    return key


def sum_shards(tree, like: Any, reduce: Callable[..., Any] = lax.psum):
    """The sum over the devices of a `shard_map` over which `like` differs.

    `like` is an array, or the aval of one.
    """
    axes = varying(getattr(like, "aval", like))
    return jax.tree.map(lambda x: reduce(x, axes), tree) if axes else tree


# ----------------------------------------------------------------------- one equation


def bind_eqn(eqn, invals) -> list[Any]:
    """Bind one equation as it stands."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*invals, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def split_scan(params, invals):
    if "num_consts" in params:  # JAX 0.10
        n, m = params["num_consts"], params["num_consts"] + params["num_carry"]
        return invals[:n], invals[n:m], invals[m:]
    return [list(part) for part in params["ft_in"].update(invals).unpack()]


def solver_operands(params, count: int) -> list[bool]:
    """Which of `count` operands of a `custom_linear_solve` its solvers alone take."""
    sizes = params["const_lengths"]
    product, solver = sizes.matvec + sizes.vecmat, sizes.solve + sizes.transpose_solve
    return [product <= i < product + solver for i in range(count)]


def split_linear_solve(params, invals):
    """(number of the body that solves, among those there are; what it takes)."""
    jaxprs, sizes = params["jaxprs"], params["const_lengths"]
    first = sizes.matvec + sizes.vecmat
    taken = [*invals[first : first + sizes.solve], *invals[sum(sizes) :]]
    return sum(j is not None for j in jaxprs[:2]), taken
