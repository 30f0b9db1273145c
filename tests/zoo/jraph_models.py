"""jraph: graph networks on padded batches, a loss for each graph."""

import jax
import jax.numpy as jnp
import jraph

from tests.zoo.case import Case, normal, weight


def _graph(seed, nodes, edges):
    send, receive = jax.random.randint(jax.random.key(seed), (2, edges), 0, nodes)
    return jraph.GraphsTuple(
        nodes=normal(seed + 1, nodes, 3),
        edges=normal(seed + 2, edges, 2),
        senders=send,
        receivers=receive,
        globals=normal(seed + 3, 1, 2),
        n_node=jnp.asarray([nodes]),
        n_edge=jnp.asarray([edges]),
    )


def _params():
    """Two rounds of message passing; each has a net for edges, nodes and globals."""

    def layer(seed, edges, nodes, wide):
        ins = {
            "edge": edges + 2 * nodes + wide,
            "node": nodes + 8 + wide,
            "wide": 8 + wide,
        }
        return {
            name: {"w": weight(seed + i, n, n, 4), "b": normal(seed + 5 + i, 4) / 3}
            for i, (name, n) in enumerate(ins.items())
        }

    return [layer(0, 2, 3, 2), layer(20, 4, 4, 4), weight(40, 4, 4)]


def _net(params, graph):
    """(graph with features) -> one number for each graph in it."""
    for layer in params[:-1]:

        def update(name, *features, layer=layer):
            dense = layer[name]
            return jnp.tanh(jnp.concatenate(features, -1) @ dense["w"] + dense["b"])

        graph = jraph.GraphNetwork(
            update_edge_fn=lambda e, s, r, g, f=update: f("edge", e, s, r, g),
            update_node_fn=lambda n, s, r, g, f=update: f("node", n, s, r, g),
            update_global_fn=lambda n, e, g, f=update: f("wide", n, e, g),
        )(graph)
    return graph.globals @ params[-1]


_SIZES = ((10, 3, 4), (20, 4, 5), (30, 2, 3))  # seed, nodes, edges


def batched() -> Case:
    """All graphs in one, padded by one more; node and edge arrays have no batch axis."""
    graph = jraph.batch([_graph(*size) for size in _SIZES])
    graph = jraph.pad_with_graphs(graph, n_node=12, n_edge=15, n_graph=4)

    def loss_fn(params, batch):
        error = (_net(params, batch["graph"]) - batch["target"]) ** 2
        return jnp.where(jraph.get_graph_padding_mask(batch["graph"]), error, 0)

    return Case(loss_fn, _params(), {"graph": graph, "target": normal(1, 4)})


def mapped() -> Case:
    """Graphs padded to the same size and stacked, under vmap; as many as nodes."""
    graphs = [jraph.pad_with_graphs(_graph(*s), 5, 6, 2) for s in _SIZES]
    graphs = [*graphs, jraph.pad_with_graphs(_graph(40, 3, 5), 5, 6, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *graphs)

    def loss_fn(params, batch):
        predict = lambda graph: _net(params, graph)[0]  # noqa: E731
        return (jax.vmap(predict)(batch["graph"]) - batch["target"]) ** 2

    return Case(loss_fn, _params(), {"graph": stacked, "target": normal(1, 4)})
