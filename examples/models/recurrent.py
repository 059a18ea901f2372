"""Recurrent networks for speech: a classifier of utterances and a transcriber, of LSTM or GRU cells.

Utterances of several lengths share a batch: they are padded with zeros to the longest, and their true lengths go along.
Both models read from left to right, so that no valid step ever sees what follows it; padding can therefore only matter
where steps are put together, and there it is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

Cell = Literal["lstm", "gru"]
_CELLS: Mapping[str, Callable[..., nn.RNNCellBase]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}
# The matrices of the cells: gates by input (i*) and by the last state (h*). The output layer, under 2 % of the weights,
# stays dense: its columns are the classes.
PRUNABLE = r"stack/recurrent_\d+/.*/kernel"


def cell_class(cell: Cell) -> Callable[..., nn.RNNCellBase]:
    """The Linen cell of a name.

    Raises:
      ValueError: for an unknown name.
    """
    if cell not in _CELLS:
        raise ValueError(f"unknown cell {cell!r}; allowed: {', '.join(get_args(Cell))}")
    return _CELLS[cell]


def valid_steps(lengths: jax.Array, steps: int) -> jax.Array:
    """Bool `(batch, steps)`: True where an utterance of `lengths`, `(batch,)`, still goes on."""
    return jnp.arange(steps)[None, :] < lengths[:, None]


class Stack(nn.Module):
    """Recurrent layers, one upon the other.

    Attributes:
      cell: `lstm` or `gru`.
      widths: hidden units of each layer.
    """

    cell: Cell
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(batch, steps, features)` to the states of the last layer, `(batch, steps, hidden)`."""
        for k, width in enumerate(self.widths):
            cell = cell_class(self.cell)(width, name=f"recurrent_{k}")
            x = nn.RNN(cell, name=f"loop_{k}")(x)  # pyright: ignore[reportAssignmentType]
        return x


class Classifier(nn.Module):
    """Says which class an utterance is of, from the state at its last step.

    Attributes:
      classes: how many.
      cell: `lstm` or `gru`.
      widths: hidden units of each recurrent layer.
    """

    classes: int
    cell: Cell = "lstm"
    widths: tuple[int, ...] = (128,)

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        """Maps features `(batch, steps, features)` and lengths `(batch,)` to logits `(batch, classes)`."""
        states = Stack(self.cell, self.widths, name="stack")(x)
        last = (jnp.arange(x.shape[1])[None, :] == lengths[:, None] - 1)[:, :, None]
        return nn.Dense(self.classes, name="output")(jnp.where(last, states, 0.0).sum(axis=1))


class Transcriber(nn.Module):
    """Gives every step a distribution over tokens, for connectionist temporal classification (CTC).

    Attributes:
      tokens: how many, the blank (token 0) included.
      cell: `lstm` or `gru`.
      widths: hidden units of each recurrent layer.

    References:
      Graves et al. 2006, Connectionist Temporal Classification, doi:10.1145/1143844.1143891.
    """

    tokens: int
    cell: Cell = "lstm"
    widths: tuple[int, ...] = (128,)

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps features `(batch, steps, features)` and lengths `(batch,)` to what `optax.ctc_loss` takes.

        Returns:
          Logits `(batch, steps, tokens)`, and paddings `(batch, steps)`: 1.0 where the utterance is over.
        """
        logits = nn.Dense(self.tokens, name="output")(Stack(self.cell, self.widths, name="stack")(x))
        return logits, 1.0 - valid_steps(lengths, x.shape[1]).astype(logits.dtype)
