"""Recurrent classifier: one layer of simple, gated or long short-term memory cells."""

from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpfree.choices import check_choice

Cell = Literal["rnn", "gru", "lstm"]
CELLS = {"rnn": nn.SimpleCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


class Model(nn.Module):
    """A sequence through a recurrent layer; logits from its last output.

    Attributes:
      num_classes: width of the last layer, whose outputs are logits.
      cell: "rnn" (tanh), "gru" or "lstm".
      hidden: units of the cell.
      vocabulary: examples are word numbers (B, T), 0 for "no word" after the end, which
        an embedding maps to `features` numbers each; 0: examples are real sequences.
      features: width of the embedding.
      sequence: (T, features) of an example that the data set gives as a row of numbers;
        () for data that comes as sequences.
    """

    num_classes: int
    cell: Cell = "gru"
    hidden: int = 64
    vocabulary: int = 0
    features: int = 64
    sequence: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Word numbers (B, T) or sequences (B, T, features) to logits (B, num_classes).

        Raises ValueError: unknown cell; examples that are neither.
        """
        check_choice("cell", self.cell, Cell)
        lengths = None
        if self.vocabulary:
            lengths = jnp.maximum((x > 0).sum(1), 1)
            x = nn.Embed(self.vocabulary, self.features)(x)
        elif self.sequence:
            x = x.reshape(x.shape[0], *self.sequence)
        if x.ndim != 3:
            raise ValueError(
                f"examples of shape {x.shape[1:]} are no sequences: set vocabulary= for "
                "word numbers, or sequence= to their (steps, features)"
            )
        layer = nn.RNN(CELLS[self.cell](self.hidden), return_carry=True)
        carry, outputs = cast(Any, layer(x))
        last = jax.tree.leaves(carry)[-1]  # of an LSTM's (c, h), h
        if lengths is not None:
            places = (lengths - 1)[:, None, None]
            last = jnp.take_along_axis(outputs, places, axis=1)[:, 0]
        return nn.Dense(self.num_classes)(last)
