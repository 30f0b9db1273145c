"""Whose gradient learned feedback can predict, and one line for the rest."""

from bpfree.estimators.clean_pass import Clean, Predictor, feeds_back, hidden, is_flat
from bpfree.program import tags
from bpfree.program.trace import NodeTree


def predicted(predictor: Predictor, weights, clean: Clean) -> NodeTree:
    """The prediction; raises ValueError if a while_loop stands in its way."""
    try:
        return predictor.predict(weights, clean)
    except ValueError as error:
        if not tags.contains(clean.program.jaxpr, lambda p: p.name == "while"):
            raise
        raise ValueError(
            "learned_feedback carries its predictions through the derivative of what "
            "stands between the nodes, and a while_loop (a fori_loop whose length is not "
            "a number) there has none in reverse. Use scan or a fori_loop of known "
            "length, or node_perturbation, which needs no derivative."
        ) from error


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
    if is_flat(clean):
        raise ValueError(
            f"the losses have no derivative at the last node, {program.nodes[-1].name!r} "
            "(a count of errors, a threshold), so no error signal starts there. Use a "
            "loss with a derivative, or node_perturbation, which needs none."
        )
    if feeds_back(clean):
        raise ValueError(
            f"the last node, {program.nodes[-1].name!r}, is read by the blocks of other "
            "nodes (in a loop, at a later step), so the loss's own derivative is not its "
            "whole gradient. Put a readout with its own node after the loop, or use "
            "node_perturbation."
        )
    if dead := predictor.dead(clean):
        raise ValueError(
            f"after the nodes {dead} the predictor finds no derivative to carry "
            "feedback through (a threshold). Use "
            "predictor=bpfree.predictors.direct(gate='learned')."
        )
