"""Training data by step: what lets a run that was stopped go on with the batch it would have seen."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxprune.trees import PyTree

Apply = Callable[[PyTree, Any], Any]
"""`(params, inputs) -> outputs`; the inputs are any pytree."""

Loss = Callable[[Any, Any], Any]
"""`(outputs, targets) -> scalar`."""

Evaluate = Callable[[Apply, PyTree], float]
"""`(apply_fn, params) -> quality`; higher is better. It calls the function it is given, which may be a smaller one."""

Batch = tuple[Any, Any]
"""`(inputs, targets)`."""

Batches = Sequence[Batch] | Callable[[int], Batch]
"""All batches, gone through again and again; or a function of the step."""


def batch_at(train_batches: Batches) -> Callable[[int], Batch]:
    """The batch of every step.

    Args:
      train_batches: a sequence of `(inputs, targets)`, or a callable `step -> (inputs, targets)`.

    Returns:
      A function of the step, from 0.

    Raises:
      TypeError: neither, such as a generator, from which no step can be read twice; or a batch that is no pair.
      ValueError: an empty sequence.

    Example:
      >>> batch_at([("a", 0), ("b", 1)])(3)
      ('b', 1)
    """
    if not callable(train_batches) and not isinstance(train_batches, Sequence):
        raise TypeError(
            f"train_batches is a {type(train_batches).__name__}; a sequence of (inputs, targets) or a callable "
            "step -> (inputs, targets) is needed, so that any step can be read again: list(batches) makes one."
        )
    if not callable(train_batches) and not train_batches:
        raise ValueError("train_batches is empty; give at least one (inputs, targets).")

    def read(step: int) -> Batch:
        batch = train_batches(step) if callable(train_batches) else train_batches[step % len(train_batches)]
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(
                f"train_batches: the batch of step {step} is {type(batch).__name__}"
                f"{f' of {len(batch)}' if isinstance(batch, tuple | list) else ''}; a pair (inputs, targets) is "
                "needed. Several inputs go into one pytree: ((x, lengths), targets)."
            )
        return batch[0], batch[1]

    return read
