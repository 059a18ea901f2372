"""A learned predictor: the change of the loss from the features of a removal, fitted on removals that were measured.

`weight_features` or `group_features` describe removals, `sensitivity` or `ablation` measure some of them, and
`fit_predictor` learns from these to predict the others. `validate` says how well: look at it before trusting a fit. On
small CNNs a single feature (`fisher`, `index_fisher`, the sparsity itself) ranks removals as well as the fit or better
(`tests/benchmarks/predictor.py`): a few layers are few to learn from.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxprune.pipeline.features import DATA, Features

Changes: TypeAlias = Mapping[tuple[str, float], float] | Sequence[float] | np.ndarray

REGULARISATIONS = tuple(10.0 ** (k / 2) for k in range(-6, 9))
# Enough to keep the matrix regular.
_UNSHRUNK = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A linear model of the logarithm of the change of the loss, on standardised features.

    Attributes:
      names: the features.
      mean: float64[features], what is subtracted of each.
      scale: float64[features], what each is divided by.
      weights: float64[features].
      intercept: the mean of the logarithm.
      regularisation: the strength of the ridge, by row.
      anchor: the feature whose weight is not shrunk; None where there is none.
      floor: changes below it, and decreases, were counted as it.

    Example:
      >>> table = Features(("energy",), tuple((name, 0.5) for name in "abc"), np.array([[-1.0], [-2.0], [-3.0]]))
      >>> predictor = fit_predictor(table, np.exp(2 * table.column("energy")))
      >>> np.argsort(predictor.predict(table)).tolist()
      [2, 1, 0]
      >>> Predictor.from_dict(predictor.to_dict()).predict(table).tolist() == predictor.predict(table).tolist()
      True
    """

    names: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: float
    regularisation: float
    floor: float
    anchor: str | None = None

    def predict(self, features: Features) -> np.ndarray:
        """The change of the loss of each row, float64[rows], positive.

        Raises:
          ValueError: the table lacks a feature that the predictor was fitted with.
        """
        if missing := [name for name in self.names if name not in features.names]:
            raise ValueError(
                f"the features lack {missing}, which the predictor was fitted with; they have {list(features.names)}. "
                "Give weight_features or group_features the same `moments` and `stats` as for the fit."
            )
        values = np.stack([features.column(name) for name in self.names], 1)
        # Far from what was measured the exponential would overflow.
        logarithm = self.intercept + (values - self.mean) / self.scale @ self.weights
        return np.exp(np.clip(logarithm, -700, 700))

    def to_dict(self) -> dict[str, Any]:
        """The predictor as numbers and strings, for JSON."""
        return {
            key: value.tolist() if isinstance(value, np.ndarray) else list(value) if key == "names" else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Predictor":
        """Reads what `to_dict` wrote.

        Raises:
          ValueError: it is no predictor.
        """
        try:
            mean, scale, weights = (np.asarray(stored[key], np.float64) for key in ("mean", "scale", "weights"))
            numbers = {key: float(stored[key]) for key in ("intercept", "regularisation", "floor")}
            names, anchor = tuple(str(name) for name in stored["names"]), stored.get("anchor")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no predictor as Predictor.to_dict writes it: {error!r}.") from error
        shapes = [array.shape for array in (mean, scale, weights)]
        if shapes != [(len(names),)] * 3:
            raise ValueError(
                f"this is no predictor as Predictor.to_dict writes it: {len(names)} names, but mean, scale and weights "
                f"of shapes {shapes}."
            )
        return cls(names, mean, scale, weights, **numbers, anchor=anchor)


def fit_predictor(
    features: Features,
    changes: Changes,
    *,
    regularisations: Sequence[float] = REGULARISATIONS,
    floor: float | None = None,
) -> Predictor:
    r"""Fits a ridge regression of $\log \max(\Delta L, \epsilon)$ on standardised features, in closed form.

    $w = (X^\top X + n \Lambda)^{-1} X^\top y$ over $n$ rows, $\Lambda$ diagonal: $\lambda$, but next to nothing for one
    feature of values, the anchor. A few layers do not tell much: with a large $\lambda$ the predictor is a power of its
    anchor, such as `fisher`, which the other features correct as far as that holds on layers that were left out.
    Anchor (or none) and $\lambda$ are those of the least squared error when each parameter or group is left out in
    turn, with all its rows; each row where there is only one of them.

    Args:
      features: the removals that were measured.
      changes: the measured change of the loss of each, in the order of the rows or by row: `sensitivity(...).changes()`
        or `ablation(...)`.
      regularisations: the $\lambda$ to choose from.
      floor: $\epsilon$, below which a change is noise; by default the median size of the decreases, at least a
        thousandth and at most the whole of the median increase. An infinite change, or NaN, counts as the largest
        finite one.

    Returns:
      The predictor.

    Raises:
      ValueError: no change of a row, fewer than two rows, no increase and no floor, a regularisation that is not
        positive.

    Example:
      >>> table = Features(("energy",), tuple((name, 0.5) for name in "abc"), np.array([[-1.0], [-2.0], [-3.0]]))
      >>> predictor = fit_predictor(table, np.exp(2 * table.column("energy")), regularisations=(1e-9,))
      >>> predictor.predict(table).round(4).tolist()
      [0.1353, 0.0183, 0.0025]

    References:
      Hoerl and Kennard 1970, Ridge Regression, Technometrics 12.
    """
    if not regularisations or min(regularisations) <= 0:
        raise ValueError(f"regularisations={regularisations}; give positive numbers, such as (0.01, 0.1, 1.0).")
    measured = aligned(features, changes)
    if len(measured) < 2:
        raise ValueError(f"{len(measured)} rows are too few to learn from; measure more removals.")
    finite = np.isfinite(measured)
    measured = np.where(finite, measured, measured[finite].max(initial=0.0))
    floor = _default_floor(measured) if floor is None else floor
    if not floor > 0:
        raise ValueError(f"floor={floor}; give a positive change of the loss below which all is noise, such as 1e-6.")
    target = np.log(np.maximum(measured, floor))
    layers = np.array(features.layers)
    folds = [layers == name for name in dict.fromkeys(features.layers)]
    if len(folds) < 2:
        folds = list(np.eye(len(target), dtype=bool))

    def error(choice: tuple[float, str | None]) -> float:
        lost = 0.0
        for held_out in folds:
            penalty = _penalty(features.names, *choice)
            mean, scale, weights, intercept = _ridge(features.values[~held_out], target[~held_out], penalty)
            predicted = intercept + (features.values[held_out] - mean) / scale @ weights
            lost += float(np.square(predicted - target[held_out]).sum())
        return lost

    anchors = [None, *(name for name in features.names if name in DATA)]
    # At a tie the strongest: the simplest model.
    strengths = sorted(regularisations, reverse=True)
    best = min(((strength, anchor) for strength in strengths for anchor in anchors), key=error)
    mean, scale, weights, intercept = _ridge(features.values, target, _penalty(features.names, *best))
    return Predictor(features.names, mean, scale, weights, intercept, float(best[0]), float(floor), best[1])


def _default_floor(measured: np.ndarray) -> float:
    increases, decreases = measured[measured > 0], -measured[measured < 0]
    if not increases.size:
        raise ValueError("no removal raised the loss, so there is nothing to learn; give `floor`, or remove more.")
    # A decrease is mostly luck with the examples, and increases are as lucky.
    median = float(np.median(increases))
    return min(max(float(np.median(decreases)) if decreases.size else 0.0, 1e-3 * median), median)


def _penalty(names: Sequence[str], strength: float, anchor: str | None) -> np.ndarray:
    return np.array([strength if name != anchor else min(strength, _UNSHRUNK) for name in names])


def _ridge(
    values: np.ndarray, target: np.ndarray, penalty: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Mean and scale of the features, weights, and intercept."""
    mean, scale, intercept = values.mean(0), values.std(0), float(target.mean())
    # A feature that does not vary here says nothing, whatever it is elsewhere.
    flat = scale <= 1e-9 * np.maximum(1, np.abs(mean))
    scale = np.where(flat, 1, scale)
    x = np.where(flat, 0, (values - mean) / scale)
    gram = x.T @ x + len(x) * np.diag(penalty)
    return mean, scale, np.linalg.solve(gram, x.T @ (target - intercept)), intercept


def aligned(features: Features, changes: Changes) -> np.ndarray:
    """The change of each row, float64[rows]; raises where one is missing."""
    if isinstance(changes, Mapping):
        if missing := [row for row in features.rows if row not in changes]:
            raise ValueError(
                f"no change is given for {missing[:5]}{' and more' if len(missing) > 5 else ''}; measure the rows of "
                "the table: the same sparsities and `where` for sensitivity as for weight_features."
            )
        return np.array([changes[row] for row in features.rows], np.float64)
    found = np.asarray(changes, np.float64)
    if found.shape != (len(features.rows),):
        raise ValueError(f"changes has shape {found.shape}; the table has {len(features.rows)} rows, one change each.")
    return found
