"""Validation of a predictor: rank correlation with measured ablation, layer by layer held out.

Beside it stands what each single feature says by itself, and a random order.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.pipeline.features import DATA, Features
from jaxprune.pipeline.predictor import Changes, aligned, fit_predictor

_RANDOM_ORDERS = 200


@dataclasses.dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of a prediction with what was measured, in three views; nan where a view has no rows.

    Attributes:
      overall: over all rows.
      within: the mean over parameters or groups, of the rows of one: which of its channels, or how steep.
      between: the mean over sparsities or shares, of the rows of one: which layer.

    Example:
      >>> print(RankCorrelation(0.91, 1.0, float("nan")))
      overall +0.91, within layers +1.00, between layers none
    """

    overall: float
    within: float
    between: float

    def __str__(self) -> str:
        views = {"overall": self.overall, "within layers": self.within, "between layers": self.between}
        return ", ".join(f"{name} {'none' if np.isnan(value) else f'{value:+.2f}'}" for name, value in views.items())


def rank_correlation(features: Features, predicted: Any, changes: Changes) -> RankCorrelation:
    """Compares a prediction of each row with what was measured, by their ranks alone.

    Args:
      features: the removals.
      predicted: one number a row; higher means a larger change.
      changes: the measured changes, as for `fit_predictor`. Decreases keep their order.

    Returns:
      The rank correlations. A prediction that does not vary has 0.

    Raises:
      ValueError: another number of predictions or changes than rows.

    Example:
      >>> table = Features((), (("a", 0), ("a", 1), ("a", 2), ("b", 0)), np.zeros((4, 0)))
      >>> print(rank_correlation(table, [1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.4, 0.3]))
      overall +0.80, within layers +1.00, between layers none

    References:
      Spearman 1904, The Proof and Measurement of Association between Two Things, Am. J. Psychology 15.
    """
    truth, guess = aligned(features, changes), aligned(features, predicted)
    layers = np.array(features.layers)
    # An index of one group has nothing to do with the same index of another.
    points = np.array([np.nan if isinstance(point, int) else point for _, point in features.rows])

    def mean_over(parts: np.ndarray) -> float:
        each = [
            _spearman(guess[parts == part], truth[parts == part])
            for part in np.unique(parts)
            if (parts == part).sum() > 2
        ]
        return float(np.mean(each)) if each else float("nan")

    return RankCorrelation(_spearman(guess, truth), mean_over(layers), mean_over(points[~np.isnan(points)]))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy import stats

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


@dataclasses.dataclass(frozen=True)
class Validation:
    """How well removals were predicted that the predictor had not seen; prints as a table.

    Attributes:
      rows: how many removals.
      layers: of how many parameters or groups.
      correlations: by name of what predicts: `predictor`, `predictor, structure alone`, `predictor, data alone`, the
        features, `random`.

    Example:
      >>> found = {"predictor": RankCorrelation(0.9, 1.0, 0.5), "random": RankCorrelation(0.0, 0.1, 0.0)}
      >>> print(Validation(8, 2, found))
      rank correlation with measured ablation; 8 removals of 2 layers, each predicted without its own layer
      predicted by                     overall   within  between
      predictor                          +0.90    +1.00    +0.50
      random                             +0.00    +0.10    +0.00
    """

    rows: int
    layers: int
    correlations: dict[str, RankCorrelation]

    def __str__(self) -> str:
        lines = [
            f"rank correlation with measured ablation; {self.rows} removals of {self.layers} layers, each predicted "
            "without its own layer",
            f"{'predicted by':<30} {'overall':>9}{'within':>9}{'between':>9}",
        ]
        for name, found in self.correlations.items():
            cells = (f"{'none' if np.isnan(value) else f'{value:+.2f}':>9}" for value in dataclasses.astuple(found))
            lines.append(f"{name:<30} {''.join(cells)}")
        return "\n".join(lines)


def validate(features: Features, changes: Changes, *, seed: int = 0, **settings: Any) -> Validation:
    """Predicts each parameter or group from all others, and compares with what was measured.

    A single feature is taken as it is and has seen nothing. Random orders are `random`, the mean over 200 of them.

    Args:
      features: the removals.
      changes: the measured changes, as for `fit_predictor`.
      seed: of the random orders.
      **settings: for `fit_predictor`.

    Returns:
      The rank correlations.

    Raises:
      ValueError: fewer than two parameters or groups, or what `fit_predictor` raises.

    Example:
      >>> rows = tuple((name, share) for name in "abc" for share in (0.5, 0.9))
      >>> table = Features(("energy", "depth"), rows, np.random.default_rng(0).normal(size=(6, 2)))
      >>> validate(table, np.exp(table.column("energy"))).correlations["energy"].overall
      1.0
    """
    measured = aligned(features, changes)
    layers = np.array(features.layers)
    if len(set(features.layers)) < 2:
        raise ValueError(
            f"all rows are of {features.layers[:1]}; to leave one out there must be another to learn from."
        )

    def held_out(names: Sequence[str]) -> np.ndarray:
        table, predicted = features.only(names), np.zeros(len(measured))
        for name in dict.fromkeys(features.layers):
            mine = layers == name
            predicted[mine] = fit_predictor(table.take(~mine), measured[~mine], **settings).predict(table.take(mine))
        return predicted

    structure = [name for name in features.names if name not in DATA]
    data = [name for name in features.names if name in DATA]
    predictors = {"predictor": features.names, "predictor, structure alone": structure, "predictor, data alone": data}
    correlations = {
        label: rank_correlation(features, held_out(names), measured) for label, names in predictors.items() if names
    }
    for name in features.names:
        correlations[name] = rank_correlation(features, features.column(name), measured)
    generator = np.random.default_rng(seed)
    orders = [rank_correlation(features, generator.random(len(measured)), measured) for _ in range(_RANDOM_ORDERS)]
    means = np.mean([dataclasses.astuple(each) for each in orders], 0)
    correlations["random"] = RankCorrelation(*(float(value) for value in means))
    return Validation(len(measured), len(set(features.layers)), correlations)
