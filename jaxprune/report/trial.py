"""What a report is made of: the trials of a comparison, and the layers of a model."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

DENSE = "dense"


def _finite_or_none(value: float) -> float | None:
    """JSON has no NaN: a trial that diverged is written as null."""
    return value if math.isfinite(value) else None


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One model of a comparison: a method at a sparsity with a seed.

    Attributes:
      method: its name; `"dense"`, with sparsity 0, for the model that nothing was taken from.
      sparsity: what was asked for, `0 <= sparsity < 1`: a fraction of zeros, or whatever else `Report.axis` names.
      seed: of the random numbers.
      quality: as the user's `eval_fn` gives it; NaN for a training that diverged.
      values: anything else by name, such as `"sparsity_prunable"`, `"kept_weights"`, `"macs"`, `"bytes"`, `"rmse"`.

    Raises:
      ValueError: an empty method, a sparsity out of range, a dense trial with a sparsity.

    Example:
      >>> trial = Trial("gmp", 0.9, seed=0, quality=0.97, values={"kept_weights": 1000.0})
      >>> Trial.from_dict(trial.to_dict()) == trial
      True
    """

    method: str
    sparsity: float
    seed: int
    quality: float
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.method:
            raise ValueError('method="" of a Trial: give the name of the method, or "dense".')
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity} of the trial {self.method!r}: give a fraction, 0 <= s < 1.")
        if self.is_dense and self.sparsity:
            raise ValueError(f'sparsity={self.sparsity} of a trial "dense": give 0, or the name of a method.')

    @property
    def is_dense(self) -> bool:
        """Whether this is the model that nothing was taken from."""
        return self.method == DENSE

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite becomes None."""
        return {
            "method": self.method,
            "sparsity": float(self.sparsity),
            "seed": int(self.seed),
            "quality": _finite_or_none(float(self.quality)),
            "values": {name: _finite_or_none(float(value)) for name, value in self.values.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The trial that `to_dict` wrote."""
        return cls(
            method=data["method"],
            sparsity=float(data["sparsity"]),
            seed=int(data["seed"]),
            quality=_float(data["quality"]),
            values={name: _float(value) for name, value in data.get("values", {}).items()},
        )


@dataclasses.dataclass(frozen=True)
class Layer:
    """One parameter of the final model, and how much of it is left.

    Attributes:
      path: of the parameter, such as `"encoder/layers_0/attn/query/kernel"`.
      weights: how many there were.
      kept: how many are left, `0 <= kept <= weights`.

    Raises:
      ValueError: counts out of range.

    Example:
      >>> Layer("dense/kernel", weights=1000, kept=100).sparsity
      0.9
    """

    path: str
    weights: int
    kept: int

    def __post_init__(self) -> None:
        if not 0 <= self.kept <= self.weights or not self.weights:
            raise ValueError(
                f"kept={self.kept} of weights={self.weights} in the layer {self.path!r}: give counts, "
                "0 <= kept <= weights and at least one weight."
            )

    @property
    def sparsity(self) -> float:
        """The fraction that is gone."""
        return (self.weights - self.kept) / self.weights

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"path": self.path, "weights": int(self.weights), "kept": int(self.kept)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The layer that `to_dict` wrote."""
        return cls(path=data["path"], weights=int(data["weights"]), kept=int(data["kept"]))
