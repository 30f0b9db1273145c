"""Graph convolutional network on one graph, whose nodes are the examples."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import bpfree
from bpfree.data import graphs
from bpfree.sampling.rules import Rule


class Model(nn.Module):
    """Layers H' = relu(A (H W + b)) on all nodes of the graph; logits of those asked for.

    A is the normalised adjacency with self-loops, as a sum over edges. Noise enters
    after A. In a hidden layer it moves the losses of neighbours too, so all losses
    answer for it, unless `local_credit` says which can; after the last layer each graph
    node has its own loss.

    Attributes:
      num_classes: width of the last layer.
      graph: one of `bpfree.data.catalogue.GRAPHS`.
      hidden: widths of the hidden layers.
      dir: as `bpfree.data.graphs.load`.

    Reference: Kipf and Welling, "Semi-supervised classification with graph convolutional
    networks", ICLR 2017.
    """

    num_classes: int
    graph: str
    hidden: Sequence[int] = (16,)
    dir: str = ""

    @nn.compact
    def whole(self) -> jax.Array:
        """Logits (N, num_classes) of all nodes of the graph."""
        graph = graphs.graph(self.graph, self.dir)
        h = jnp.asarray(graph.features)
        for i, width in enumerate(self.hidden):
            h = propagate(graph, nn.Dense(width)(h))
            h = nn.relu(bpfree.node(h, f"layer_{i}", batch_axis=None))
        h = propagate(graph, nn.Dense(self.num_classes)(h))
        return bpfree.node(h, f"layer_{len(self.hidden)}", batch_axis=0)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Node numbers (B,) to logits (B, num_classes)."""
        return self.whole()[x]

    def objective(self):
        """`(params, batch) -> losses (N,)`, zero but for the B nodes of the batch.

        Their cross-entropies times N / B, so that the mean is that over the batch.
        """

        def losses(params, batch):
            logits = self.apply({"params": params}, method="whole")
            x, label = batch["x"], batch["label"]
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels
            found = cross_entropy(logits[x], label) * (len(logits) / len(x))
            return jnp.zeros(len(logits), found.dtype).at[x].add(found)

        return losses


def propagate(graph: graphs.Graph, values: jax.Array) -> jax.Array:
    """A values, for values (N, units) on the nodes."""
    messages = graph.weights[:, None] * values[graph.senders]
    return jax.ops.segment_sum(messages, graph.receivers, len(values))


def local_credit(graph: str, layers: int = 1, dir: str = "") -> dict[str, Rule]:
    """Argument `credit=` for the model: a layer's noise answers for losses in its reach.

    Args:
      graph, dir: as in the model.
      layers: hidden layers of the model.
    """
    found = graphs.graph(graph, dir)
    adjacency = np.zeros((len(found.features),) * 2, bool)
    adjacency[found.receivers, found.senders] = True
    return {
        f"layer_{i}": bpfree.within_hops(adjacency, layers - i, axis=0)
        for i in range(layers)
    }
