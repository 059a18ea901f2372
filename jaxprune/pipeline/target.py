"""`Target`: what a pruned model is to reach, and what it may lose."""

import dataclasses
from typing import Literal

Goal = Literal["sparsity", "macs", "bytes", "latency"]


@dataclasses.dataclass(frozen=True)
class Target:
    """What the pruned model is to reach, exactly one of four, and how much quality it may lose.

    `sparsity` and `bytes` are met by zeros in single weights (or N:M groups, or blocks); `macs` and `latency` by
    cutting whole channels, heads and features out of the arrays, for zeros alone save neither.

    Attributes:
      sparsity: fraction of zeros of the parameters that may be pruned, in (0, 1).
      macs: multiply-adds of one call, as a fraction of the dense model's, in (0, 1).
      bytes: a stored model, kept weights and a bit a weight for the mask, as a fraction of the dense one, in (0, 1).
      latency: the time of one call, measured here, as a fraction of the dense model's, in (0, 1).
      max_drop: what the quality may fall below that of the dense model, in the units of `eval_fn`.

    Raises:
      ValueError: none or several are given, or a value is out of range.

    Example:
      >>> Target(macs=0.5, max_drop=0.01).goal
      'macs'
      >>> Target(macs=0.5).removed, Target(sparsity=0.9).removed
      (0.5, 0.9)
    """

    sparsity: float | None = None
    macs: float | None = None
    bytes: float | None = None
    latency: float | None = None
    max_drop: float = 0.005

    def __post_init__(self) -> None:
        given = {name: value for name in _GOALS if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise ValueError(
                f"Target needs exactly one of {', '.join(_GOALS)}; {', '.join(given) or 'none'} given. For several, "
                "run the pipeline for the one that matters most and read the others in its report."
            )
        for name, value in given.items():
            if not 0 < value < 1:
                meaning = "the fraction of zeros" if name == "sparsity" else "the fraction of the dense model's"
                raise ValueError(f"Target({name}={value}): give {meaning}, between 0 and 1.")
        if self.max_drop < 0:
            raise ValueError(f"max_drop={self.max_drop}: give 0 or more, in the units of eval_fn.")

    @property
    def goal(self) -> Goal:
        """Which of the four is given."""
        return next(name for name in _GOALS if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """Its value."""
        return getattr(self, self.goal)

    @property
    def cuts(self) -> bool:
        """Whether whole indices are cut out of the arrays."""
        return self.goal in ("macs", "latency")

    @property
    def removed(self) -> float:
        """The fraction that is to go: of weights, or of what the goal counts."""
        return self.value if self.goal == "sparsity" else 1 - self.value


_GOALS: tuple[Goal, ...] = ("sparsity", "macs", "bytes", "latency")
