"""Whose gradient learned feedback can predict, and one line for the rest."""

from contextlib import contextmanager

from bpfree.estimators.clean_pass import Clean, Predictor, feeds_back, hidden, is_flat
from bpfree.program import tags
from bpfree.program.trace import NodeTree

_NEEDS = (
    "learned_feedback carries its predictions through the derivative of what stands "
    "between the nodes"
)


@contextmanager
def _derivatives(clean: Clean):
    """Says what has no derivative, where JAX finds that something has none."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        jaxpr = clean.program.jaxpr
        if tags.contains(jaxpr, lambda p: p.name.endswith("callback")):
            raise ValueError(
                f"{_NEEDS}, and a callback to the host there has none. Give it one by "
                "jax.custom_jvp, or use node_perturbation, which needs no derivative."
            ) from error
        if not tags.contains(jaxpr, lambda p: p.name == "while"):
            raise
        raise ValueError(
            f"{_NEEDS}, and a while_loop (a fori_loop whose length is not a number) "
            "there has none in reverse. Use scan or a fori_loop of known length, or "
            "node_perturbation, which needs no derivative."
        ) from error


def predicted(predictor: Predictor, weights, clean: Clean) -> NodeTree:
    """The prediction; raises ValueError if something without a derivative is there."""
    with _derivatives(clean):
        return predictor.predict(weights, clean)


def check(clean: Clean, predictor: Predictor) -> None:
    """Raises ValueError for nodes or losses whose gradient cannot be predicted."""
    program = clean.program
    if program.batch_size is None:
        raise ValueError("learned_feedback needs one loss per example, (B,); got one")
    if not hidden(program):
        raise ValueError(
            "learned_feedback needs a node before the last one: the last node's gradient "
            "is the loss's own derivative, and there is nothing to learn"
        )
    if program.nodes[-1].batch_axis is None:
        raise ValueError(
            f"the last node, {program.nodes[-1].name!r}, is shared by the batch "
            "(batch_axis=None); learned_feedback takes the loss's derivative at the last "
            "node for each example. Leave it out (nodes=), or use node_perturbation."
        )
    shared = [s.name for s in program.nodes if s.batch_axis is None]
    if shared and predictor.models == "rest":
        raise ValueError(
            f"the nodes {shared} are shared by the batch (weight noise), and a direct "
            "predictor has a gradient for each example only. Use "
            "predictor=bpfree.predictors.chained(), or leave them out (nodes=)."
        )
    with _derivatives(clean):
        flat, back, dead = is_flat(clean), feeds_back(clean), predictor.dead(clean)
    if flat:
        raise ValueError(
            f"the losses have no derivative at the last node, {program.nodes[-1].name!r} "
            "(a count of errors, a threshold), so no error signal starts there. Use a "
            "loss with a derivative, or node_perturbation, which needs none."
        )
    if back:
        raise ValueError(
            f"the last node, {program.nodes[-1].name!r}, is read by the blocks of other "
            "nodes (in a loop, at a later step), so the loss's own derivative is not its "
            "whole gradient. Put a readout with its own node after the loop, or use "
            "node_perturbation."
        )
    if dead:
        raise ValueError(
            f"after the nodes {dead} the predictor finds no derivative to carry "
            "feedback through (a threshold). Use "
            "predictor=bpfree.predictors.direct(gate='learned')."
        )
