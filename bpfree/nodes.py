"""Nodes: the marked values a backprop-free estimator perturbs and credits.

`node` is the identity. Three program transformations read the marks of a loss function
`loss_fn(params, batch[, key])`, which returns losses `(B,)` (or `()` for one experiment
per batch), or `(losses, aux)`:

* `record`   run, and return the value of every node and kernel input;
* `inject`   run with `y + delta` at the nodes, forward only;
* `pullback` run with the graph cut at every node, and return the product of each block's
  own Jacobian with a signal: nothing crosses a node.

With y_l the nodes, s_l the signals and theta the parameters,

    pull(s) = sum_l (dy_l / dtheta)^T s_l  +  d mean(losses) / dtheta,

where both derivatives hold every earlier node constant (Schulman et al. 2015, "Gradient
Estimation Using Stochastic Computation Graphs", arXiv:1506.05254).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.program import tags
from bpfree.program.blocks import Blocks, check_blocks
from bpfree.program.interpreter import Run
from bpfree.program.passes import adding, cut, cut_vjp, evaluate
from bpfree.program.tags import INFERRED
from bpfree.program.trace import LossFn, NodeFilter, NodeTree, Program, arguments, trace


def node(x: Any, name: str | None = None, batch_axis: int | str | None = INFERRED) -> Any:
    """Mark `x` as a node; the identity for everything but bpfree's transformations.

    Args:
      x: floating point array, normally a layer's pre-activation.
      name: names the node, and keys its noise. A repeated name gets `#1`, `#2`, ... in
        order of appearance; None numbers nodes by order, which edits can change.
      batch_axis: axis of size B, which `vmap` and `scan` shift. By default it is read
        from the program; where the noise of an example would reach the losses of others,
        the node is shared by the batch. None marks a value shared by the batch, which is
        credited with the mean loss.

    Raises:
      TypeError: `x` is not floating point.
      ValueError: `batch_axis` is out of range.

    Example:
        >>> bpfree.node(jnp.arange(3.0), "hidden").tolist()
        [0.0, 1.0, 2.0]
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"node {name!r} has dtype {x.dtype}: only real floating point values can "
            "be perturbed. Mark the value before it is rounded, cast or thresholded."
        )
    if batch_axis is not None and batch_axis != INFERRED:
        if not -x.ndim <= int(batch_axis) < x.ndim:
            raise ValueError(
                f"node {name!r} has shape {x.shape}, which has no axis {batch_axis}. "
                "Pass batch_axis=None for a value shared by the whole batch."
            )
        batch_axis = int(batch_axis) % x.ndim
    return tags.tagged(x, "node", name, batch_axis)


def hold(x: jax.Array, name: str) -> jax.Array:
    """Mark `x` as a statistic of the clean pass; the identity under plain autodiff.

    Noisy passes (`inject`, and every perturbation estimator) use the value that `x` has
    in the clean pass, so that noise does not change it. No derivative passes through it,
    in the clean pass neither: the estimated gradient is that of the loss with `x` held
    constant. Without this, the noise of one example would reach the losses of all others
    through batch normalisation; the adapters hold its mean and variance.

    Hold an action that the loss function draws itself, if the loss is a policy gradient:
    noise on the logits would draw another one. Autodiff takes it for a constant, and
    `stop_gradient`, which says so of real numbers, knows no whole ones.

    Args:
      x: array of any shape and type.
      name: a repeated name gets `#1`, `#2`, ... in order of appearance.

    Example:
        >>> def centred(params, batch):
        ...     y = bpfree.node(batch["x"] @ params["w1"])
        ...     return ((y - bpfree.hold(y.mean(0, keepdims=True), "mean")) ** 2).sum(1)
        >>> centred(params, batch).shape
        (5,)
    """
    return tags.tagged(x, "hold", name)


def record(loss_fn: LossFn, nodes: NodeFilter = None) -> Callable:
    """Run a loss function and return the value of every node.

    Args:
      loss_fn: `(params, batch[, key]) -> losses (B,)`, `()`, or `(losses, aux)`.
      nodes: predicate on names, or names with wildcards; the others are no nodes. None:
        all.

    Returns:
      `(params, batch[, key]) -> (output of loss_fn, {node: y}, {kernel path: input})`.
      Values keep their shape; inside `lax.scan` they gain a leading time axis.

    Raises:
      ValueError (when called): losses of another shape.

    Example:
        >>> losses, values, inputs = bpfree.record(loss_fn)(params, batch)
        >>> {name: value.shape for name, value in values.items()}
        {'hidden': (5, 4), 'output': (5, 2)}
    """

    def recorded(params, batch, key=None):
        program = trace(loss_fn, params, batch, key, nodes)

        def visit(site, y, deltas):
            seen = site.kind == "input" or site.name in program.active
            return y, {site.name: y} if seen else {}

        out, taps = evaluate(program, Run(visit), arguments(loss_fn, params, batch, key))
        values = {s.name: taps.pop(s.name) for s in program.nodes}
        return out, values, {name.removeprefix(tags.INPUT): x for name, x in taps.items()}

    return recorded


def inject(loss_fn: LossFn, nodes: NodeFilter = None) -> Callable:
    """Run a loss function forward with `y + delta` at its nodes.

    Args:
      loss_fn, nodes: as in `bpfree.record`.

    Returns:
      `(params, batch, {node: delta}[, key]) -> (output of loss_fn, {node: y})`. A delta
      has the shape of its node; a node that is left out gets none. `y` is the value
      before the node's own delta, and contains the effect of the earlier ones. A value
      that is held (`bpfree.hold`) costs a clean pass first.

    Raises:
      ValueError (when called): unknown names or wrong shapes.

    Example:
        >>> deltas = {"output": jnp.ones((5, 2))}
        >>> losses, values = bpfree.inject(loss_fn)(params, batch, deltas)
        >>> bool((losses > loss_fn(params, batch)).all())
        True
    """

    def injected(params, batch, deltas: NodeTree, key=None):
        program = trace(loss_fn, params, batch, key, nodes)
        _check_tree(program, deltas, "delta")
        args = arguments(loss_fn, params, batch, key)
        if any(s.kind == "hold" for s in program.sites):
            program = program.holding(cut(program, args)[1])
        out, taps = evaluate(program, Run(adding(program)), args, deltas)
        return out, {s.name: taps[s.name] for s in program.nodes}

    return injected


def pullback(loss_fn: LossFn, nodes: NodeFilter = None) -> Callable:
    r"""Run a loss function, and return the map from signals at the nodes to a gradient.

    .. math:: \text{pull}(s) = \sum_l \Big(\frac{\partial y_l}{\partial\theta}\Big)^{\!T}
        s_l + \frac{\partial}{\partial\theta}\, \text{mean}(L)

    where both derivatives hold every earlier node constant, so that no signal crosses a
    node. The second term is that of the block that ends at the loss.

    Args:
      loss_fn, nodes: as in `bpfree.record`.

    Returns:
      `(params, batch[, key]) -> (output of loss_fn, {node: y}, pull)`. The gradient
      `pull({node: signal})` has the shape of params. A signal has the shape of its node
      and estimates d(mean loss)/dy, so it includes the 1/B; one left out is zero.

    Raises:
      ValueError (when called): a block has no derivative at all (see `bpfree.blocks`).

    Source: Schulman et al., "Gradient estimation using stochastic computation graphs",
    NeurIPS 2015, arXiv:1506.05254.

    Example:
        >>> losses, values, pull = bpfree.pullback(loss_fn)(params, batch)
        >>> gradient = pull({"output": 2 * (values["output"] - batch["t"]) / 5})
        >>> exact = jax.grad(lambda p: loss_fn(p, batch).mean())(params)
        >>> bool(jnp.allclose(gradient["w2"], exact["w2"])), float(gradient["w1"].sum())
        (True, 0.0)
    """

    def pulled(params, batch, key=None):
        program = trace(loss_fn, params, batch, key, nodes)
        args = arguments(loss_fn, params, batch, key)
        check_blocks(program, args)
        out, values, vjp = cut_vjp(program, args)

        def pull(signals: NodeTree):
            _check_tree(program, signals, "signal")
            return vjp(signals)

        return out, {s.name: values[s.name] for s in program.nodes}, pull

    return pulled


def blocks(loss_fn: LossFn, params, batch, key=None, nodes: NodeFilter = None) -> Blocks:
    """What an estimator differentiates between the nodes; `print` it.

    Says for each block its parameters, how many weight products its derivative contains,
    and how many of those carry an error signal through a weight, as backprop does at
    every layer. Nothing is computed.

    Args:
      loss_fn, nodes: as in `bpfree.record`.
      params, batch, key: the arguments of `loss_fn`; ShapeDtypeStructs are enough.

    Returns:
      A tuple of blocks in program order, each with `name`, `params`, `products`,
      `carried` and `noise`: "example" (each example has a draw of its own), "batch" (all
      examples share one) or "weights" (the noise is added to the parameter).

    Raises:
      ValueError: a node or a parameter has no derivative in its block.

    Example:
        >>> print(bpfree.blocks(loss_fn, params, batch))
        block   noise    products  carried  parameters
        hidden  example         1        0  w1
        output  example         1        0  w2
        (loss)  none            0        0  -
        error signals carried through a weight: 0
    """
    program = trace(loss_fn, params, batch, key, nodes)
    return check_blocks(program, arguments(loss_fn, params, batch, key))


def _check_tree(program: Program, tree: NodeTree, what: str) -> None:
    shapes = {s.name: s.shape for s in program.nodes}
    for name, value in tree.items():
        if name not in shapes:
            raise ValueError(
                f"{what} for unknown node {name!r}; the nodes are {sorted(shapes)}"
            )
        if (shape := np.shape(value)) != shapes[name]:
            raise ValueError(
                f"{what} of node {name!r} has shape {shape}, the node has {shapes[name]}"
            )
