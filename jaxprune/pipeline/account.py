"""What pruning cost in training, and after how many calls it has paid for itself."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxprune import schedules
from jaxprune.measure import Figure, break_even, saving, training_flops
from jaxprune.pipeline.methods import METHODS, Make, Settings
from jaxprune.posttraining import Method
from jaxprune.pruners import Pruner


def _gmp(s: Settings) -> dict[str, Any]:
    return {"method": "gmp", "schedule": schedules.cubic(**s.window())}


# The formula of each method of `METHODS` that has one. The others move their masks, or train what they mask, in ways
# that the appendix does not count.
_FORMULAS: Mapping[str, Callable[[Settings], dict[str, Any]]] = {
    "random": lambda s: {"method": "static"},
    "snip": lambda s: {"method": "snip"},
    "magnitude": lambda s: {"method": "gmp", "schedule": schedules.one_shot(s.at(0.5))},
    "gmp": _gmp,
    "set": lambda s: {"method": "set"},
    "rigl": lambda s: {"method": "rigl", "every": s.window()["every"]},
    "granet": lambda s: _gmp(s) | {"method": "granet", "every": s.window()["every"]},
}


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


def method_flops(
    make: Make | None, made: Pruner | Method | None, settings: Settings, *, dense: float, sparse: float
) -> float | None:
    r"""The FLOPs that one training of a comparison takes, if zeros cost nothing.

    Between dense and pruned the cost of a forward pass is taken to fall in proportion to the sparsity, which it does
    where the share of each layer in it stands still: $f(s) = f_D - (f_D - f_S) s / s_{target}$.

    Args:
      make: the function of `METHODS`, or a user's own; None is the dense model.
      made: what it made. A method of `jp.posttraining` prunes the dense model, whose training is what it costs; the few
        passes over calibration data are not counted.
      settings: of the training; `sparsity` is the target.
      dense: FLOPs of a forward pass of the dense model, on a batch.
      sparse: those of the pruned one.

    Returns:
      Theoretical FLOPs, or None for a pruner without a formula.

    References:
      Evci et al. 2020, Rigging the Lottery, arXiv 1911.11134, appendix H.

    Example:
      >>> make, settings = METHODS["random"], Settings(0.9, steps=10)
      >>> round(method_flops(make, make(settings), settings, dense=100.0, sparse=10.0))
      300
    """
    if made is None or not isinstance(made, Pruner):
        return training_flops("dense", dense=dense, steps=settings.steps).value
    formula = next((_FORMULAS.get(name) for name, known in METHODS.items() if known is make), None)
    if formula is None or not settings.sparsity:
        return None
    target = settings.sparsity
    return training_flops(
        **formula(settings),
        dense=dense,
        steps=settings.steps,
        sparsity=target,
        sparse=lambda level: dense - (dense - sparse) * level / target,
    ).value
