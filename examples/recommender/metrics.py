"""Metrics of recommenders, and the baselines that a model has to beat."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from examples.data.ratings import Ratings

LOWEST, HIGHEST = 1.0, 5.0
_SWEEPS = 20


def rmse(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Root of the mean squared error of ratings; predictions are clipped to the scale of 1 to 5.

    >>> rmse(np.array([7.0, 3.0]), np.array([4.0, 3.0])) == 0.5**0.5
    True
    """
    return float(np.sqrt(np.mean((np.clip(predicted, LOWEST, HIGHEST) - actual) ** 2)))


def ranks(scores: np.ndarray) -> np.ndarray:
    """int[n]: before how many others the first candidate comes, counted from 0 for the best.

    Ties count against the model: one that gives all candidates the same score has found nothing. So does NaN.

    Args:
      scores: float[n, candidates].

    >>> ranks(np.array([[0.5, 0.1, 0.9], [0.2, 0.2, 0.2]])).tolist()
    [1, 2]
    """
    return np.sum(~(scores[:, 1:] < scores[:, :1]), axis=1)


def hit_rate(rank: np.ndarray, at: int = 10) -> float:
    """The share of users whose item is among the first `at`.

    >>> hit_rate(np.array([0, 9, 10, 50]))
    0.5
    """
    return float(np.mean(rank < at))


def ndcg(rank: np.ndarray, at: int = 10) -> float:
    r"""Normalised discounted cumulative gain of one item: $1 / \log_2(2 + rank)$ among the first `at`, else 0.

    >>> ndcg(np.array([0, 2, 10]))
    0.5
    """
    return float(np.mean(np.where(rank < at, 1 / np.log2(2.0 + rank), 0.0)))


class Biases(NamedTuple):
    """The bias model: how generous a user is, and how liked an item.

    Attributes:
      mean: of the training ratings.
      user: float[users].
      item: float[items].
    """

    mean: float
    user: np.ndarray
    item: np.ndarray

    def predict(self, ratings: Ratings) -> np.ndarray:
        """The rating that the model expects for each pair."""
        return self.mean + self.user[ratings.user] + self.item[ratings.item]


def fit_biases(
    train: Ratings, users: int, items: int, user_strength: float = 5.0, item_strength: float = 2.0
) -> Biases:
    r"""Fits the bias model by alternating exact minimisation.

    $\sum (r_{ui} - \mu - b_u - b_i)^2 + \lambda_u \sum b_u^2 + \lambda_i \sum b_i^2$. The strengths are the best of
    nine pairs on the validation part.

    Args:
      train: training ratings.
      users: how many users there are.
      items: how many items there are.
      user_strength: $\lambda_u$.
      item_strength: $\lambda_i$.
    """
    mean = float(train.value.mean())
    user, item = np.zeros(users), np.zeros(items)
    for _ in range(_SWEEPS):
        left = train.value - mean - user[train.user]
        item = np.bincount(train.item, left, items) / (item_strength + np.bincount(train.item, minlength=items))
        left = train.value - mean - item[train.item]
        user = np.bincount(train.user, left, users) / (user_strength + np.bincount(train.user, minlength=users))
    return Biases(mean, user, item)


def popularity_scores(train: Ratings, candidates: np.ndarray, items: int) -> np.ndarray:
    """Scores of the baseline of rankings: how often each candidate is in the training part."""
    return np.bincount(train.item, minlength=items)[candidates].astype(np.float64)
