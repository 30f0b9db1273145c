"""The tag primitive and the interpreter that reads it: all we know about jaxprs.

A tag is the identity with a label. `run` evaluates a jaxpr and lets `visit` replace the
value behind each tag; it descends into `jit`, `remat` and `scan`, where tagged values
gain a leading time axis. Everything that differs between JAX versions is in this file.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend import core as jcore
from jax.interpreters import ad, batching, mlir, partial_eval

MAPPED = "mapped"  # batch axis of a value inside a per-example function under `vmap`


class _Mapped(NamedTuple):
    """A MAPPED batch axis to which a vmap has given a place."""

    axis: int


class Site(NamedTuple):
    """One tagged value as the whole program sees it (scanned values are stacked)."""

    name: str
    kind: str  # "node", "input" or "hold"
    batch_axis: int | None  # MAPPED until a vmap has said which
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


def _tag_batcher(args, dims, *, batch_axis, **params):
    (x,), (d,) = args, dims
    if batch_axis == MAPPED or isinstance(batch_axis, _Mapped):
        batch_axis = _Mapped(d)  # of several vmaps, the outermost has the last word
    elif batch_axis is not None:
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


def _contains(jaxpr, wanted: Callable[[Any], bool]) -> bool:
    """Whether a primitive is wanted, at any depth."""
    return any(
        wanted(eqn.primitive) or any(_contains(j, wanted) for j in sub_jaxprs(eqn))
        for eqn in jaxpr.eqns
    )


def _has_tags(jaxpr) -> bool:
    return _contains(jaxpr, lambda primitive: primitive is tag_p)


def has_custom_vjp(jaxpr) -> bool:
    """Whether there is a derivative that is known in reverse mode only."""
    return _contains(jaxpr, lambda primitive: "custom_vjp" in primitive.name)


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
            params = dict(eqn.params)
            if isinstance(params["batch_axis"], _Mapped):
                params["batch_axis"] = params["batch_axis"].axis
            sites.append(Site(**params, shape=aval.shape, dtype=aval.dtype))
        elif any(map(_has_tags, sub_jaxprs(eqn))):
            inner = _sites_inside(eqn)
            if eqn.primitive.name == "scan":
                inner = [_stacked(s, eqn.params["length"]) for s in inner]
            sites += inner
    return sites


def _sites_inside(eqn) -> list[Site]:
    name = eqn.primitive.name
    if name in INLINED or name in REMAT or name == "scan":
        return find_sites(body_of(eqn)[0])
    first = next(s for j in sub_jaxprs(eqn) for s in find_sites(j))
    raise NotImplementedError(
        f"node {first.name!r} is inside `{name}`; bpfree reads nodes in straight code, "
        "jit, vmap, scan and remat. Move the node out of it (mark the value that enters "
        "or leaves), or leave it out with `where=`."
    )


def _stacked(site: Site, length: int) -> Site:
    axis = site.batch_axis
    moved = axis + 1 if isinstance(axis, int) else axis
    shape = (length, *site.shape)
    return site._replace(batch_axis=moved, shape=shape, steps=site.steps + 1)


def dce(jaxpr, used_outputs: Sequence[bool]) -> tuple[Any, list[bool]]:
    """The jaxpr without what the chosen outputs do not need, and which inputs they do."""
    return partial_eval.dce_jaxpr(jaxpr, list(used_outputs))[:2]


def _varying(aval) -> tuple[str, ...]:
    """The axes of a `shard_map` around us over which a value differs."""
    manual = getattr(aval, "manual_axis_type", None)
    return tuple(sorted(manual.varying)) if manual else ()


def zeros(aval) -> jax.Array:
    """Zeros of the shape and type of `aval`, varying over the same mesh axes."""
    made = jax.numpy.zeros(aval.shape, aval.dtype)
    axes = _varying(aval)
    return lax.pcast(made, axes, to="varying") if axes else made


def fold_in_shards(key: jax.Array, like: Any) -> jax.Array:
    """A key of its own for each device of a `shard_map` over which `like` differs.

    `like` is an array, or the aval of one.
    """
    for axis in _varying(getattr(like, "aval", like)):
        key = jax.random.fold_in(key, lax.axis_index(axis))
    return key


def sum_shards(tree, like: Any, reduce: Callable[..., Any] = lax.psum):
    """The sum over the devices of a `shard_map` over which `like` differs.

    `like` is an array, or the aval of one.
    """
    axes = _varying(getattr(like, "aval", like))
    return jax.tree.map(lambda x: reduce(x, axes), tree) if axes else tree


# --------------------------------------------------------------------- the interpreter

Known = dict[tuple[int, ...], list[Any]]
"""Values of equations, by their place in the program."""

Visit = Callable[[Site, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]
"""visit(site, y, deltas) -> (value behind the tag, {name: what to hand out})."""


def plain_scan(body, consts, carry, xs, **options):
    """`lax.scan` of `body(consts, carry, x)`."""
    return lax.scan(lambda c, x: body(consts, c, x), carry, xs, **options)


Bind = Callable[[Any, list[Any]], list[Any]]
"""bind(eqn, inputs) -> outputs."""


def bind_eqn(eqn, invals) -> list[Any]:
    """Bind one equation as it stands."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*invals, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


class Run(NamedTuple):
    """One evaluation: what to do at tags, and values already known from `prefix`.

    `scan` evaluates loops with tags inside, `inner_scan` those within a loop or remat;
    the arguments are those of `plain_scan`. `bind` evaluates all else.
    """

    visit: Visit
    known: Known = {}
    scan: Callable[..., tuple[Any, Any]] = plain_scan
    inner_scan: Callable[..., tuple[Any, Any]] = plain_scan
    bind: Bind = bind_eqn


def run(
    spec: Run, jaxpr, consts, args, sites: Sequence[Site], deltas, path=()
) -> tuple[list[Any], dict[str, Any]]:
    """Evaluate `jaxpr`, calling `spec.visit` at each of its tags.

    Returns the outputs and what the visits handed out; inside `scan` both the handed
    out values and `deltas` carry a leading time axis.
    """
    env: dict[Any, Any] = {}
    taps: dict[str, Any] = {}
    upcoming = iter(sites)
    _bind(env, [*jaxpr.constvars, *jaxpr.invars], [*consts, *args])
    for i, eqn in enumerate(jaxpr.eqns):
        here = (*path, i)
        inner = _take(upcoming, eqn)
        if here in spec.known:
            _bind(env, eqn.outvars, spec.known[here])
            continue
        invals = [_read(env, v) for v in eqn.invars]
        if eqn.primitive is tag_p:
            value, out = spec.visit(inner[0], invals[0], deltas)
            outvals = [value]
        elif inner:
            outvals, out = _run_inner(spec, eqn, invals, inner, deltas, here)
        else:
            outvals, out = spec.bind(eqn, invals), {}
        taps.update(out)
        _bind(env, eqn.outvars, outvals)
    return [_read(env, v) for v in jaxpr.outvars], taps


def prefix(
    jaxpr, consts, args, sites, moved: Callable[[Site], bool], clean: Known | None = None
) -> Known:
    """Values of all equations that no moved tag, and no effect, can reach.

    The result is `Run.known` for evaluations that differ only behind the moved tags:
    what they share is computed once. Loops are either wholly shared or not at all. Values
    that are in `clean`, the result for no moved tag, are looked up there.
    """
    known: Known = {}
    clean = clean or {}

    def unknown(values):
        return any(v is _UNKNOWN for v in values)

    def walk(jaxpr, consts, args, sites, path):
        env = {}
        upcoming = iter(sites)
        _bind(env, [*jaxpr.constvars, *jaxpr.invars], [*consts, *args])
        for i, eqn in enumerate(jaxpr.eqns):
            here = (*path, i)
            inner = _take(upcoming, eqn)
            invals = [_read(env, v) for v in eqn.invars]
            if eqn.primitive is tag_p:
                outvals = [_UNKNOWN if moved(inner[0]) else invals[0]]
            elif inner and eqn.primitive.name in INLINED:
                outvals = walk(*body_of(eqn), invals, inner, here)
            elif unknown(invals) or any(map(moved, inner)) or eqn.effects:
                outvals = [_UNKNOWN] * len(eqn.outvars)
            else:
                outvals = clean[here] if here in clean else bind_eqn(eqn, invals)
            if not unknown(outvals) and not eqn.effects:
                known[here] = outvals
            _bind(env, eqn.outvars, outvals)
        return [_read(env, v) for v in jaxpr.outvars]

    walk(jaxpr, consts, args, sites, ())
    return known


def behind(jaxpr, sites: Sequence[Site], moved: Callable[[Site], bool]) -> set[int]:
    """`id` of the equations that a moved tag reaches, loops as wholes; holds stop it."""
    found: set[int] = set()

    def walk(jaxpr, inputs, sites):
        env: dict[Any, bool] = {}
        upcoming = iter(sites)
        _bind(env, [*jaxpr.constvars, *jaxpr.invars], inputs)
        for eqn in jaxpr.eqns:
            inner = _take(upcoming, eqn)
            invals = [not isinstance(v, jcore.Literal) and env[v] for v in eqn.invars]
            reached = [any(invals) or any(map(moved, inner))] * len(eqn.outvars)
            if eqn.primitive is tag_p:
                reached = [moved(inner[0]) or (invals[0] and inner[0].kind != "hold")]
            elif inner and eqn.primitive.name in INLINED:
                body, consts = body_of(eqn)
                reached = walk(body, [False] * len(consts) + invals, inner)
            found.update([id(eqn)] if any(reached) else [])
            _bind(env, eqn.outvars, reached)
        return [not isinstance(v, jcore.Literal) and env[v] for v in jaxpr.outvars]

    walk(jaxpr, [False] * (len(jaxpr.constvars) + len(jaxpr.invars)), sites)
    return found


_UNKNOWN = object()


def hoist(fn: Callable[..., Any], *shapes) -> Callable[..., Any]:
    """`fn` with all that does not depend on its arguments computed once, here.

    Args:
      shapes: arguments of `fn`, or ShapeDtypeStructs of them.
    """
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*shapes)
    jaxpr, consts = open_jaxpr(closed)
    inputs = [_UNKNOWN] * len(jaxpr.invars)
    spec = Run(_no_visit, prefix(jaxpr, consts, inputs, (), lambda site: False))

    def hoisted(*args):
        outs, _ = run(spec, jaxpr, consts, jax.tree.leaves(args), (), {})
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    return hoisted


def _no_visit(site, y, deltas):
    raise AssertionError(f"mark {site.name!r} in a program that had none")


def _take(upcoming: Iterator[Site], eqn) -> list[Site]:
    if eqn.primitive is tag_p:
        return [next(upcoming)]
    count = sum(len(find_sites(j)) for j in sub_jaxprs(eqn) if _has_tags(j))
    return list(islice(upcoming, count))


def _read(env, var):
    return var.val if isinstance(var, jcore.Literal) else env[var]


def _bind(env, variables, values):
    env.update(zip(variables, values, strict=True))


def replay(jaxpr, consts, args, bind: Bind) -> list[Any]:
    """Evaluate a jaxpr with `bind(eqn, inputs)` for each equation, jit inlined."""
    env: dict[Any, Any] = {}
    _bind(env, [*jaxpr.constvars, *jaxpr.invars], [*consts, *args])
    for eqn in jaxpr.eqns:
        invals = [_read(env, v) for v in eqn.invars]
        if eqn.primitive.name in INLINED:
            outvals = replay(*body_of(eqn), invals, bind)
        else:
            outvals = bind(eqn, invals)
        _bind(env, eqn.outvars, outvals)
    return [_read(env, v) for v in jaxpr.outvars]


def _run_inner(spec, eqn, invals, sites, deltas, path):
    jaxpr, consts = body_of(eqn)
    mine = {s.name: deltas[s.name] for s in sites if s.name in deltas}
    if eqn.primitive.name in INLINED:
        return run(spec, jaxpr, consts, invals, sites, mine, path)
    fresh = spec._replace(known={}, scan=spec.inner_scan)
    if eqn.primitive.name == "scan":
        return _run_scan(fresh, spec.scan, eqn, invals, sites, mine)
    options = {k: eqn.params[k] for k in ("policy", "prevent_cse")}

    def body(invals, deltas):
        return run(fresh, jaxpr, consts, invals, sites, deltas)

    return jax.checkpoint(body, **options)(invals, mine)


def split_scan(params, invals):
    if "num_consts" in params:  # JAX 0.10
        n, m = params["num_consts"], params["num_consts"] + params["num_carry"]
        return invals[:n], invals[n:m], invals[m:]
    return [list(part) for part in params["ft_in"].update(invals).unpack()]


def replay_scan(eqn, invals, bind: Bind) -> list[Any]:
    """A scan equation whose body is replayed."""
    jaxpr, closed = body_of(eqn)
    consts, carry, xs = split_scan(eqn.params, invals)

    def body(consts, carry, xs):
        outs = replay(jaxpr, closed, [*consts, *carry, *xs], bind)
        return outs[: len(carry)], outs[len(carry) :]

    options = {k: eqn.params[k] for k in _OF_LOOPS}
    carry, ys = plain_scan(body, list(consts), list(carry), list(xs), **options)
    return [*carry, *ys]


_OF_LOOPS = ("length", "reverse", "unroll")


def _run_scan(spec, scan, eqn, invals, sites, deltas):
    jaxpr, closed = body_of(eqn)
    consts, carry, xs = split_scan(eqn.params, invals)

    def body(consts, carry, xs_and_deltas):
        closed, consts = consts
        xs, deltas = xs_and_deltas
        outs, taps = run(spec, jaxpr, closed, [*consts, *carry, *xs], sites, deltas)
        return outs[: len(carry)], (outs[len(carry) :], taps)

    options = {k: eqn.params[k] for k in _OF_LOOPS}
    scan = plain_scan if eqn.effects else scan
    carry, (ys, taps) = scan(
        body, (list(closed), list(consts)), list(carry), (list(xs), deltas), **options
    )
    return [*carry, *ys], taps
