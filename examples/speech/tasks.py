"""What is trained in `speech_recognition.py`: data, a recurrent model, a loss and a quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from examples.data.speech import SpeechData, Utterances
from examples.models import recurrent
from examples.models.recurrent import Cell
from jaxprune.pruners import Pruner

PyTree = Any
Apply = Callable[[PyTree, Any], Any]
Batch = tuple[Any, Any]
Split = Literal["validation", "test"]
_EVALUATION_BATCH = 256


def _gmp(settings: jp.pipeline.Settings) -> Pruner:
    """Gradual magnitude pruning that ends half-way, so that the few weights that are left have time to learn."""
    every = max(1, settings.steps // 60)
    return jp.pruners.gmp(
        settings.sparsity,
        begin=settings.at(0.1),
        end=settings.at(0.5),
        every=every,
        allocation=jp.allocation.global_,
        where=settings.where,
    )


def _snip(settings: jp.pipeline.Settings) -> Pruner:
    """SNIP: before training, by the gradients of one batch times the weights (Lee et al. 2019, arXiv 1810.02340)."""
    return jp.pruners.static(
        settings.sparsity,
        score=jp.scores.saliency,
        grads=settings.grads,
        allocation=jp.allocation.global_,
        where=settings.where,
    )


# Methods that differ here from those of the same name in `jp.pipeline.METHODS`: weights of all matrices are ranked
# together. Seen on validation utterances (LSTM, 99.5 % zeros): gmp 0.85 ± 0.03 so, 0.71 ± 0.12 with equal shares.
METHODS: Mapping[str, Callable[[jp.pipeline.Settings], Pruner]] = {"gmp": _gmp, "snip": _snip}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a task is trained.

    Attributes:
      steps: of the optimiser.
      batch_size: utterances a step.
      learning_rate: the highest; it rises over a tenth of the steps, then falls to zero along a cosine.
      widths: hidden units of each recurrent layer.
      noise: standard deviation of what is added to standardised features in training, against overfitting.
    """

    steps: int
    batch_size: int
    learning_rate: float
    widths: tuple[int, ...]
    noise: float = 0.0

    def optimizer(self, steps: int | None = None, scale: float = 1.0) -> optax.GradientTransformation:
        """Adam on clipped gradients, over `steps` (by default those of the recipe), at `scale` times the rate."""
        steps = self.steps if steps is None else steps
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, scale * self.learning_rate, max(1, steps // 10), max(2, steps)
        )
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


@dataclasses.dataclass(frozen=True)
class Task:
    """All that `jp.compare` asks for.

    Attributes:
      data: the utterances; `data.train` is what is trained on.
      recipe: how to train.
      init: a key to fresh parameters.
      apply_fn: parameters and `(features, lengths)` to outputs.
      loss_fn: outputs and targets to the mean loss.
      train_batches: a step to `(inputs, targets)`.
      eval_fn: the quality on the split of the task, higher is better.
      quality: its name.
      example: inputs of one batch, for tracing.
    """

    data: SpeechData
    recipe: Recipe
    init: Callable[[jax.Array], PyTree]
    apply_fn: Apply
    loss_fn: Callable[[Any, Any], jax.Array]
    train_batches: Callable[[int], Batch]
    eval_fn: Callable[[Apply, PyTree], float]
    quality: str
    example: tuple[jax.Array, jax.Array]


def classification(data: SpeechData, cell: Cell, recipe: Recipe, split: Split) -> Task:
    """Which class is an utterance of? Accuracy.

    Args:
      data: utterances with one label each.
      cell: of the recurrent layers.
      recipe: how to train.
      split: what the quality is measured on. For `test`, training also has the validation utterances.
    """
    module = recurrent.Classifier(len(data.classes), cell, recipe.widths)
    return _task(data, recipe, split, module, cross_entropy, accuracy, "accuracy")


def transcription(data: SpeechData, cell: Cell, recipe: Recipe, split: Split) -> Task:
    """Which tokens does an utterance hold? One minus the error rate of tokens; see `classification`."""
    module = recurrent.Transcriber(len(data.classes) + 1, cell, recipe.widths)
    return _task(data, recipe, split, module, ctc_loss, token_accuracy, "1 - token error rate")


def _task(
    data: SpeechData,
    recipe: Recipe,
    split: Split,
    module: recurrent.Classifier | recurrent.Transcriber,
    loss_fn: Callable[[Any, Any], jax.Array],
    quality_of: Callable[[Apply, PyTree, Utterances], float],
    quality: str,
) -> Task:
    train = joined([data.train, data.validation]) if split == "test" else data.train
    data = dataclasses.replace(data, train=train)

    def apply_fn(params: PyTree, inputs: tuple[jax.Array, jax.Array]) -> Any:
        return module.apply({"params": params}, *inputs)

    def batch(step: int) -> Batch:
        rng = np.random.default_rng(step)
        chosen = train[rng.integers(0, len(train), recipe.batch_size)]
        noise = rng.normal(scale=recipe.noise, size=chosen.features.shape).astype(np.float32)
        return (chosen.features + noise, chosen.lengths), chosen.labels

    example = (jnp.asarray(train.features[:1]), jnp.asarray(train.lengths[:1]))

    @jax.jit
    def init(key: jax.Array) -> PyTree:
        return module.init(key, *example)["params"]

    held: Utterances = getattr(data, split)

    def evaluate(apply_fn: Apply, params: PyTree) -> float:
        return quality_of(apply_fn, params, held)

    return Task(data, recipe, init, apply_fn, loss_fn, batch, evaluate, quality, example)


def joined(parts: Sequence[Utterances]) -> Utterances:
    """Several sets of utterances as one, padded to the longest."""
    steps = max(part.features.shape[1] for part in parts)
    widened = [np.pad(part.features, ((0, 0), (0, steps - part.features.shape[1]), (0, 0))) for part in parts]
    return Utterances(
        np.concatenate(widened),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of logits `(batch, classes)` and labels `(batch,)`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()


def ctc_loss(outputs: tuple[jax.Array, jax.Array], labels: jax.Array) -> jax.Array:
    """The mean CTC loss for each token of the labels.

    Args:
      outputs: logits `(batch, steps, tokens)` and paddings `(batch, steps)`.
      labels: `(batch, most)`, from 1, padded with 0.
    """
    labels = jnp.asarray(labels)
    paddings = (labels == 0).astype(jnp.float32)
    losses = optax.ctc_loss(outputs[0], outputs[1], labels, paddings)
    return losses.sum() / (labels > 0).sum().astype(losses.dtype)


def accuracy(apply_fn: Apply, params: PyTree, held: Utterances) -> float:
    """The fraction of utterances that get their class."""
    return float(np.mean(outputs_of(apply_fn, params, held)[0].argmax(-1) == held.labels))


def token_accuracy(apply_fn: Apply, params: PyTree, held: Utterances) -> float:
    """One minus the token error rate: insertions, deletions and substitutions over the number of true tokens."""
    logits, paddings = outputs_of(apply_fn, params, held)
    errors = 0
    for scores, padding, label in zip(logits, paddings, held.labels, strict=True):
        errors += edit_distance(decode(scores[padding == 0]), [int(token) for token in label if token])
    return 1.0 - errors / int((held.labels > 0).sum())


def outputs_of(apply_fn: Apply, params: PyTree, held: Utterances) -> list[np.ndarray]:
    """The outputs for all utterances, as a list of arrays; batches are of one size, so that one program serves all."""
    size = min(_EVALUATION_BATCH, len(held))
    found: list[list[np.ndarray]] = []
    for start in range(0, len(held), size):
        chosen = np.minimum(np.arange(start, start + size), len(held) - 1)
        outputs = apply_fn(params, (held.features[chosen], held.lengths[chosen]))
        found.append([np.asarray(leaf)[: len(held) - start] for leaf in jax.tree.leaves(outputs)])
    return [np.concatenate(leaves) for leaves in zip(*found, strict=True)]


def decode(logits: np.ndarray) -> list[int]:
    """The best path: the likeliest token of each step, repetitions joined, blanks (0) left out.

    Example:
      >>> decode(np.eye(3)[[0, 1, 1, 0, 1, 2]])
      [1, 1, 2]
    """
    best = logits.argmax(-1)
    return [int(token) for token, before in zip(best, [-1, *best[:-1]], strict=True) if token and token != before]


def edit_distance(found: Sequence[int], wanted: Sequence[int]) -> int:
    """How many insertions, deletions and substitutions turn one sequence into the other (Levenshtein).

    Example:
      >>> edit_distance([1, 2, 3], [2, 3, 4])
      2
    """
    row = list(range(len(wanted) + 1))
    for i, token in enumerate(found, start=1):
        last, row[0] = row[0], i
        for j, other in enumerate(wanted, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (token != other))
    return row[-1]
