"""Early-bird tickets: when the indices that a score would keep have stopped changing, it is time to shrink."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxprune.shrinking.plan import Plan


class EarlyBird(NamedTuple):
    """The plans drawn so far.

    Attributes:
      window: how many earlier plans the newest is compared with.
      threshold: the largest mask distance at which it counts as settled.
      history: the newest plan and the `window` before it, oldest first.

    Example:
      >>> import jaxprune as jp
      >>> jp.early_bird(window=3).found
      False
    """

    window: int
    threshold: float
    history: tuple[Mapping[str, np.ndarray], ...]

    @property
    def distance(self) -> float:
        """The largest distance of the newest plan to those before it: the share of indices decided otherwise."""
        if len(self.history) <= self.window:
            return 1.0
        newest = self.history[-1]
        return max(_distance(newest, other) for other in self.history[:-1])

    @property
    def found(self) -> bool:
        """Whether the plans have settled, so that the model can be shrunk."""
        return self.distance < self.threshold

    def update(self, plan: Plan) -> "EarlyBird":
        """Adds the plan that was drawn after an epoch.

        Raises:
          ValueError: the plan names other groups, or other sizes, than those before.
        """
        for earlier in self.history:
            if any(mask.size != earlier[name].size for name, mask in plan.keep.items() if name in earlier):
                raise ValueError("the plan is for a model of another size than those before; start again after a cut.")
        return self._replace(history=(*self.history, plan.keep)[-self.window - 1 :])


def early_bird(window: int = 5, threshold: float = 0.1) -> EarlyBird:
    """Watches for the epoch at which the indices to keep have settled.

    Draw a plan after each epoch (`select` at the final ratio, nothing is cut) and give it to `update`; `found` becomes
    true when it is closer than `threshold` to all of the `window` plans before it.

    Args:
      window: how many earlier plans the newest is compared with.
      threshold: the largest share of indices that may be decided otherwise.

    Returns:
      The watcher, without a plan.

    Raises:
      ValueError: a window below 1, or a threshold outside (0, 1].

    Example:
      >>> import jaxprune as jp
      >>> watcher = early_bird(window=2)
      >>> for _ in range(3):
      ...     watcher = watcher.update(jp.Plan({"g": [True, False, True]}))
      >>> watcher.found, watcher.distance
      (True, 0.0)

    References:
      You et al. 2020, Drawing Early-Bird Tickets, arXiv 1909.11957.
    """
    if window < 1 or not 0 < threshold <= 1:
        raise ValueError(f"early_bird(window={window}, threshold={threshold}): window >= 1 and 0 < threshold <= 1.")
    return EarlyBird(window, threshold, ())


def _distance(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """The share of indices that two plans decide otherwise; a group that a plan does not name is kept whole."""
    names = sorted({*a, *b})
    apart = sum(int(np.sum(_mask(a, b, name) != _mask(b, a, name))) for name in names)
    total = sum(_mask(a, b, name).size for name in names)
    return apart / total if total else 0.0


def _mask(own: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return own[name] if name in own else np.ones(other[name].size, bool)
