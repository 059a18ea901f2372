"""Perplexity of a language model on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.data.text import Split, TextData

PyTree = Any
Apply = Callable[[PyTree, jax.Array], jax.Array]


class Quality(NamedTuple):
    """How well a model predicts a text.

    Attributes:
      perplexity: `exp` of the mean loss of a token, in nats; compares models that share a tokenizer.
      byte_perplexity: `exp` of the loss of the text divided by its bytes; compares any models.
      bits_per_byte: its base-2 logarithm.
      tokens: how many were predicted.
    """

    perplexity: float
    byte_perplexity: float
    bits_per_byte: float
    tokens: int


def token_losses(apply: Apply, params: PyTree, windows: jax.Array) -> jax.Array:
    """The cross-entropy, in nats, of every token of each window but its first.

    Args:
      apply: parameters and token ids `(batch, length)` to logits.
      params: of the model.
      windows: token ids `(batch, length + 1)`.

    Returns:
      Losses `(batch, length)`.
    """
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, windows[:, :-1]), windows[:, 1:])


def cut(tokens: np.ndarray, context: int, limit: int | None = None) -> np.ndarray:
    """Cuts a text into windows `(n, context + 1)` that predict each token at most once.

    Each window begins with the last token of the one before; what does not fill a window is left out.

    Args:
      tokens: token ids `(m,)`.
      context: tokens that the model sees.
      limit: keep that many windows at most, spread evenly over the text.

    Raises:
      ValueError: if the text does not fill one window.
    """
    count = (len(tokens) - 1) // context
    if count < 1:
        raise ValueError(f"{len(tokens)} tokens do not fill a window of {context + 1}")
    chosen = np.arange(count)
    if limit is not None and limit < count:
        chosen = np.arange(limit) * count // limit
    return tokens[chosen[:, None] * context + np.arange(context + 1)[None, :]]


def make_evaluator(
    apply: Apply, data: TextData, split: Split, context: int, limit: int | None = None, batch_size: int = 32
) -> Callable[[PyTree], Quality]:
    """Makes a function that measures parameters on a split; compiled once for all of the same shapes.

    Args:
      apply: parameters and token ids to logits.
      data: the corpus.
      split: which part of it.
      context: tokens that the model sees.
      limit: windows to measure on, spread evenly over the split; all by default.
      batch_size: windows at once.
    """
    windows = cut(data.tokens(split), context, limit)
    batch_size = min(batch_size, len(windows))
    predicted_bytes = int(data.token_bytes[windows[:, 1:]].sum())

    def evaluate(params: PyTree) -> Quality:
        total = 0.0
        for start in range(0, len(windows), batch_size):
            batch = windows[start : start + batch_size]
            missing = batch_size - len(batch)  # filled up, so that all batches have one shape
            filled = np.concatenate([batch, np.repeat(batch[:1], missing, axis=0)])
            losses = _window_losses(apply, params, jnp.asarray(filled))
            total += float(np.asarray(losses, np.float64)[: len(batch)].sum())
        tokens = windows[:, 1:].size
        per_byte = total / max(1, predicted_bytes)
        return Quality(_exp(total / tokens), _exp(per_byte), per_byte / math.log(2), tokens)

    return evaluate


@partial(jax.jit, static_argnames="apply")
def _window_losses(apply: Apply, params: PyTree, windows: jax.Array) -> jax.Array:
    """The summed loss of each window; compiled once for an `apply` and a shape."""
    return token_losses(apply, params, windows).sum(axis=1)


def _exp(loss: float) -> float:
    """The exponential; infinite where a broken model gives more than a float can hold, NaN for NaN."""
    return float(np.exp(np.minimum(loss, 700.0))) if loss <= 700 or math.isnan(loss) else math.inf
