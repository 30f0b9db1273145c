"""Tags put into a traced loss function, where `find` says that nodes stand."""

import math
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp

from bpfree.program import rewriting, tags
from bpfree.program.decisions import Found, Mark
from bpfree.program.find import find
from bpfree.program.flat import Path
from bpfree.program.maps import maps_opened
from bpfree.program.place import Parts, Place

_NESTED = 3  # loops over parts of the batch within each other that are opened


def with_nodes(jaxpr, consts, args, batch: int | None, credited: bool, **options):
    """(jaxpr, constants) of the loss function with all its nodes tagged.

    Args:
      args: arguments of the loss function, `(params, batch[, key])`.
      batch: number of losses; None: one loss for the whole batch.
      credited: whether rules of the user say which losses answer for a node.
      options: the further arguments of `find`.
    """
    for _ in range(_NESTED):
        found = find(jaxpr, consts, roles(args), 0, batch, credited, **options)
        if not found.maps:
            break
        jaxpr, consts = maps_opened(jaxpr, consts, jax.tree.leaves(args), found.maps)
    else:
        found = find(jaxpr, consts, roles(args), 0, batch, credited, **options)
    return tagged(jaxpr, consts, args, batch, found)


def roles(args) -> list[str]:
    """Of the leaves of `(params, batch[, key])`."""
    trees = zip(("param", "batch", "key"), args, strict=False)
    return [name for name, tree in trees for _ in jax.tree.leaves(tree)]


def tagged(jaxpr, consts, args, batch: int | None, found: Found):
    """(jaxpr, constants) with the tags that were found."""
    marking = _Marking(found, param_paths(args[0]), batch)

    def marked(*leaves):
        return marking.run(jaxpr, consts, marking.weights(leaves), ())

    closed = jax.make_jaxpr(marked)(*jax.tree.leaves(args))
    return tags.open_jaxpr(closed)


def param_paths(params) -> list[str]:
    """Paths of the leaves in words; raises ValueError for what is not real floating."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    found = [param_path(p) for p, _ in leaves]
    for path, (_, leaf) in zip(found, leaves, strict=True):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"parameter {path!r} is {jnp.result_type(leaf)}; parameters are "
                "real floating point. Keep other state in the batch or in a closure."
            )
    return found


def param_path(path: tuple) -> str:
    """The key path of a leaf in words: "layer/kernel".

    Flax NNX wraps every array in a Variable, whose own key, `.value`, is left out.
    """
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


class _Marking:
    """Evaluates a program and puts the tags in."""

    def __init__(self, found: Found, paths: list[str], batch: int | None):
        self.found, self.paths, self.batch = found, paths, batch
        kernels = defaultdict(set)
        for mark in found.outputs.values():
            for leaf in mark.leaves[:1] if mark.kind == "node" else ():
                kernels[_parent(paths[leaf])].add(leaf)
        self.kernels = kernels
        places = [*found.outputs, *found.inputs, *found.idle]
        self.inside = {path[:i] for path in places for i in range(len(path))}

    def weights(self, leaves) -> list[Any]:
        marks = self.found.params
        return [
            self.tag(x, marks[i], self.paths[i]) if i in marks else x
            for i, x in enumerate(leaves)
        ]

    def named(self, mark: Mark) -> tuple[Mark, str]:
        """A node is named by its kernel's module, or by the kernel if it has several."""
        if not mark.leaves:
            return mark, tags.STOPPED if mark.kind == "hold" else "batch"
        path = self.paths[mark.leaves[0]]
        parent = _parent(path)
        return mark, parent if parent and len(self.kernels[parent]) == 1 else path

    def tag(self, x, mark: Mark, name: str | None):
        """A node whose examples are folded into an axis sees them on an axis alone."""
        at = mark.place
        if isinstance(at, Parts):
            return self.tag_parts(x, mark, name, at)
        if at is None or (at.outer, at.inner) == (1, 1):
            axis = None if at is None else at.axis
            return tags.tagged(x, mark.kind, name, axis)
        sizes = [n for n in (at.outer, self.batch, at.inner) if n != 1]
        shape = (*x.shape[: at.axis], *sizes, *x.shape[at.axis + 1 :])
        axis = at.axis + (at.outer != 1)
        y = tags.tagged(x.reshape(shape), mark.kind, name, axis)
        return y.reshape(x.shape)

    def tag_parts(self, x, mark: Mark, name: str | None, at: Parts):
        """A node whose examples stand on several axes sees them on its first one."""
        of_axis = {at.axis: (at, n) for at, n in zip(at.places, at.sizes, strict=True)}
        shape: list[int] = []
        source = {}
        for axis, whole in enumerate(x.shape):
            place, size = of_axis.get(axis, (None, 0))
            source[axis] = len(shape) + 1
            shape += [place.outer, size, place.inner] if place else [whole]
        moved = [source[place.axis] for place in at.places]
        front = list(range(len(moved)))
        y = jnp.moveaxis(x.reshape(shape), moved, front)
        whole = y.reshape(self.batch, *(n for n in y.shape[len(moved) :] if n != 1))
        y = tags.tagged(whole, mark.kind, name, 0).reshape(y.shape)
        return jnp.moveaxis(y, front, moved).reshape(x.shape)

    def output(self, eqn, invals, outs, mark: Mark):
        if mark.kind == "statistic":
            return self.statistic(invals[0], eqn.params["axes"], mark)
        return self.tag(outs[0], *self.named(mark))

    def statistic(self, x, axes: tuple[int, ...], mark: Mark):
        """A sum over the batch, as the mean that it is a multiple of.

        Tagged are the mean and, before it, the share of every example in it, (B, ...).
        """
        at, name = mark.place, tags.MEAN + self.named(mark)[1]
        assert isinstance(at, Place) and self.batch
        folds = (at.outer, self.batch, at.inner)
        x = x.reshape(*x.shape[: at.axis], *folds, *x.shape[at.axis + 1 :])
        x = jnp.moveaxis(x, at.axis + 1, 0)  # outer and inner stay, one axis further on
        rest = [a + 1 + (a > at.axis) for a in axes if a != at.axis]
        summed = (at.axis + 1, at.axis + 2, *rest)
        size = self.batch * math.prod(x.shape[a] for a in summed)
        kind = x.dtype
        x = x if jnp.issubdtype(kind, jnp.floating) else x.astype(jnp.float32)  # counts
        shares = tags.tagged(x.sum(summed) / size, "shares", tags.SHARES + name, 0)
        total = tags.tagged(shares.sum(0), "statistic", name) * size
        return total if total.dtype == kind else jnp.round(total).astype(kind)

    def run(self, jaxpr, consts, args, path: Path) -> list[Any]:
        def each(i, eqn, invals):
            here = (*path, i)
            if here in self.found.inputs:
                operand, mark = self.found.inputs[here]
                name = tags.INPUT + self.paths[mark.leaves[0]]
                invals[operand] = self.tag(invals[operand], mark, name)
            outs = self.equation(eqn, invals, here)
            if here in self.found.outputs and eqn.primitive is not tags.tag_p:
                outs = [self.output(eqn, invals, outs, self.found.outputs[here])]
            return outs

        return rewriting.walk(jaxpr, consts, args, each)

    def equation(self, eqn, invals, here: Path) -> list[Any]:
        if eqn.primitive is tags.tag_p:
            return [self.retagged(eqn, invals[0], here)]
        if eqn.primitive.name in tags.INLINED:
            return self.run(*tags.body_of(eqn), invals, here)
        if here not in self.inside:
            return tags.bind_eqn(eqn, invals)

        def body(jaxpr, consts, args, k=0):
            return self.run(jaxpr, consts, args, (*here, k))

        return rewriting.reopened(eqn, invals, body)

    def retagged(self, eqn, x, here: Path):
        """A tag of the user, with its batch axis; the value alone if it is idle."""
        kind, name = eqn.params["kind"], eqn.params["name"]
        if kind in tags.NOISE or (kind == "node" and here in self.found.idle):
            return x
        if here in self.found.outputs and eqn.params["batch_axis"] == tags.INFERRED:
            return self.tag(x, self.found.outputs[here], name)
        return tags.bind_eqn(eqn, [x])[0]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
