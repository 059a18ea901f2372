"""What pruning cost in training, and after how many calls it has paid for itself."""

import dataclasses
import math

from jaxprune.measure import Figure, break_even, saving, training_flops


def account(before: Figure, after: Figure, *, steps: int, warmup: int = 0) -> str:
    """The training ledger of a run in words, all of it theoretical.

    A step costs three calls of the dense model whatever the masks say, for it is dense arrays that are trained.

    Args:
      before: multiply-adds of a call of the dense model, on a batch as large as those of the training.
      after: those of the pruned model.
      steps: how many steps were trained for the sake of pruning; those of rounds that were rolled back count.
      warmup: steps of the dense training before.

    Returns:
      What was spent, and after how many calls it is paid back.

    Example:
      >>> macs = [Figure(value, "MACs", "modelled", "jaxpr") for value in (1e6, 5e5)]
      >>> account(*macs, steps=100).endswith("it is paid back after 600 inferences (theoretical) of that size.")
      True
    """
    flops = [dataclasses.replace(figure, value=2 * (figure.value or 0.0), unit="FLOPs") for figure in (before, after)]
    spent, first = (training_flops("dense", dense=flops[0].value or 0.0, steps=count) for count in (steps, warmup))
    beside = f" after {first} for the warm-up" if warmup else ""
    gain = saving(*flops)
    paid = break_even(spent, gain)
    back = f"A call on one batch saves {gain}, so it is paid back after {paid} of that size."
    if paid.value is not None and math.isinf(paid.value):
        back = f"Then {paid.note}."
    return (
        f"Pruning took {steps:,} steps of training, three calls each: {spent}{beside}; scores, evaluations and a "
        f"teacher are not counted. {back}"
    )
