"""Adam as one function of the program for all leaves of a shape.

Written out for each leaf, as optax does, it is as large as backprop's whole program.
"""

import jax
import optax


def adam(rate: float, **options) -> optax.GradientTransformation:
    """`optax.adam(rate, **options)`: the same numbers, and the same state."""
    written_out = optax.adam(rate, **options)

    @jax.jit
    def of_leaf(slope, *moments):
        state = optax.ScaleByAdamState(*moments), optax.EmptyState()
        moved, (moments, _) = written_out.update(slope, state)
        return moved, *moments

    def update(slopes, state, params=None):
        del params
        (count, *moments), *rest = state
        leaves, tree = jax.tree.flatten(slopes)
        of_leaves = zip(leaves, *map(tree.flatten_up_to, moments), strict=True)
        found = [of_leaf(slope, count, mu, nu) for slope, mu, nu in of_leaves]
        moved, counts, *moments = map(list, zip(*found, strict=True))
        moments = map(tree.unflatten, moments)
        state = optax.ScaleByAdamState(counts[0], *moments)
        return tree.unflatten(moved), (state, *rest)

    return optax.GradientTransformation(written_out.init, update)
