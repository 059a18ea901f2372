"""What an allocation is told about each parameter."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of one parameter.

    Attributes:
      path: the parameter's path.
      shape: the parameter's shape; with a traced model as `where`, its window, fan-in and fan-out as a matrix.
      count: how many units it has.
      weight: how many weights a unit holds (of an edge block: at most).
      sparsity: a sparsity that a rule fixed for it, or None.
    """

    path: str
    shape: tuple[int, ...]
    count: int
    weight: int
    sparsity: float | None = None


class Allocation(Protocol):
    """Chooses units of all parameters under one budget."""

    def __call__(
        self, scores: Sequence[jax.Array], units: Sequence[Units], sparsity: Any, progress: jax.Array | None
    ) -> list[jax.Array]:
        """Returns a bool array over the units of each parameter; `progress` scales all sparsities."""
        ...
