"""Predictors of the gradient at each node, for `learned_feedback`.

A predictor maps its weights, and the values of the clean pass, to dL_b / dy for every
node y and example b. It never reads the weights of the model.
"""

import jax
import jax.numpy as jnp

from bpfree.estimators import clean_pass
from bpfree.estimators.clean_pass import Clean, Predictor
from bpfree.estimators.direct_predictor import SMALL, direct

__all__ = ["Clean", "Predictor", "chained", "direct"]


def chained() -> Predictor:
    r"""Each node's prediction is made of the next one's, through learned weights.

    With f_l the code between node l and node l + 1, and V of the shape of the model's
    parameters but never read from them,

    .. math:: \hat g_l = \Big(\frac{\partial f_l(y_l; V)}{\partial y_l}\Big)^{\!T}
        \hat g_{l+1}, \qquad \hat g_L = \frac{\partial L}{\partial y_L}

    It takes any model, several successors of a node included, and shares weights where
    the model does. Matrices start near zero, and vectors (biases, scales of norms) at the
    values of the model's. A block without a derivative (a threshold) is an error.

    Example:
        >>> tx = bpfree.learned_feedback(
        ...     loss_fn, example_batch=batch, predictor=bpfree.predictors.chained()
        ... )
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, state.inner.weights)
        {'w1': (3, 4), 'w2': (4, 2)}
    """

    def init(key, clean):
        leaves, tree = jax.tree.flatten(clean.args[0])
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(tree, map(_small_like, keys, leaves))

    def predict(weights, clean):
        def chain(values):
            return clean_pass.chain_of_blocks(clean, weights, values)

        standing, vjp = jax.vjp(chain, clean.values)
        found = vjp(clean_pass.output_gradient(clean, standing))[0]
        return {site.name: found[site.name] for site in clean.program.nodes}

    def dead(clean):
        def ends(clean, values):
            blocks = clean_pass.ends_of_blocks(clean, clean.args[0], values)
            return blocks, clean_pass.losses_of(clean, values)

        hidden = clean_pass.hidden(clean.program)
        return clean_pass.without_derivative(ends, clean, hidden)

    return Predictor(init, predict, clean_pass.responses, dead)


def _small_like(key, leaf):
    if leaf.ndim < 2 or not leaf.size:
        return jnp.array(leaf, copy=True)  # a donated state must not take the model's
    lecun = jax.nn.initializers.lecun_normal()
    made = (SMALL * lecun(key, leaf.shape)).astype(leaf.dtype)
    place = getattr(leaf, "sharding", None)  # that of one device would tie it there
    return (
        made if place is None or place.num_devices == 1 else jax.device_put(made, place)
    )
