"""Results of `stop_gradient`, held while parameters move.

To autodiff, what stands under a `stop_gradient` is a constant: a target, a detached
baseline. For finite differences over the parameters to mean the same,

    L(theta + sigma z; c),        c = what stood there at theta

the values c of a clean pass take its place in the noisy ones. Whole numbers have no
`stop_gradient`; they are held where they are marked with `bpfree.hold`.
"""

import jax
import jax.numpy as jnp

from bpfree.program import interpreter, tags
from bpfree.program.find import find
from bpfree.program.identities import as_lines
from bpfree.program.interpreter import Run
from bpfree.program.marking import roles, tagged
from bpfree.program.rewriting import to_jaxpr
from bpfree.program.trace import LossFn, check_losses, split_aux


def held(loss_fn: LossFn, args, traced=None) -> LossFn:
    """`loss_fn`, with what it has at `args` wherever noise would pass a stop_gradient.

    `traced` is `to_jaxpr(loss_fn, args)`, for callers that have it.
    Costs a clean pass if there is such a place. Marks of the user are ignored, but on
    whole numbers.
    """
    jaxpr, consts, out = traced or to_jaxpr(loss_fn, args)
    size = check_losses(split_aux(out)[0])
    jaxpr, consts = as_lines(jaxpr, consts, jax.tree.leaves(args))
    found = find(jaxpr, consts, roles(args), 0, size, True, everywhere=True)
    whole = any(map(_is_whole, tags.find_sites(jaxpr)))
    if not (whole or any(mark.kind == "hold" for mark in found.outputs.values())):
        return loss_fn
    jaxpr, consts = tagged(jaxpr, consts, args, size, found)
    sites = tags.find_sites(jaxpr)
    sites = [s._replace(name=f"{i} {s.name}") for i, s in enumerate(sites)]
    stopped = (s for s in sites if s.name.endswith(f" {tags.STOPPED}") or _is_whole(s))
    names = {s.name for s in stopped}

    def visit(site, y, values):
        if site.name in values:
            return interpreter.held(values[site.name], y), {}
        return y, ({site.name: y} if site.name in names else {})

    def evaluate(args, values):
        leaves = jax.tree.leaves(args)
        return interpreter.run(Run(visit), jaxpr, consts, leaves, sites, values)

    values = evaluate(args, {})[1]

    def noisy(*args):
        return jax.tree.unflatten(jax.tree.structure(out), evaluate(args, values)[0])

    return noisy


def _is_whole(site) -> bool:
    return site.kind == "hold" and not jnp.issubdtype(site.dtype, jnp.inexact)
