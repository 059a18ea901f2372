"""What is trained on, what is asked for, and what is compared with: no rating is in two places.

Two protocols, each with a validation part to choose the recipe on and a test part to report:

- *ratings*: a random tenth for the test, a tenth for validation (RMSE);
- *rankings*: of each user the last item for the test, the one before for validation, each to be found among 99 items
  that the user never touched (He et al. 2017, arXiv 1708.05031). Ranking among a sample flatters every model: compare
  these figures with each other only (Krichene & Rendle 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from examples.data.ratings import RatingData, Ratings

Part = Literal["validation", "test"]
PARTS: tuple[Part, ...] = ("validation", "test")
NEGATIVES = 99
_SEED = 0


@dataclass(frozen=True)
class RatingSplit:
    """Ratings to train on, and ratings to predict."""

    train: Ratings
    held_out: Ratings


@dataclass(frozen=True)
class RankingSplit:
    """Interactions to train on, and candidates to rank.

    Attributes:
      train: interactions; each is a positive.
      user: int32[n], whose candidates they are.
      candidates: int32[n, 1 + negatives]; the first one is the held-out item.
    """

    train: Ratings
    user: np.ndarray
    candidates: np.ndarray


def split_ratings(data: RatingData, part: Part, share: float = 0.1) -> RatingSplit:
    """Splits ratings at random, the same way every time.

    Args:
      data: all ratings.
      part: which part is held out. For validation the test part is left out altogether; for the test the validation
        part is trained on.
      share: of each held-out part.

    Returns:
      The split.

    Raises:
      ValueError: `part` is none of `PARTS`, or there are too few ratings for it to hold any.
    """
    _check(part)
    count = int(share * len(data.ratings))
    if count < 1 or 2 * count >= len(data.ratings):
        raise ValueError(f"share={share} of {len(data.ratings)} ratings holds {count}; 1 to less than half are needed.")
    order = np.random.default_rng(_SEED).permutation(len(data.ratings))
    test, validation, rest = order[:count], order[count : 2 * count], order[2 * count :]
    if part == "validation":
        return RatingSplit(data.ratings.at(rest), data.ratings.at(validation))
    return RatingSplit(data.ratings.at(np.concatenate([validation, rest])), data.ratings.at(test))


def split_rankings(data: RatingData, part: Part, negatives: int = NEGATIVES) -> RankingSplit:
    """Takes the last item of each user away, or the one before it.

    The candidates are drawn once, with a fixed seed, from the items that the user has not touched in any part. At equal
    times the order of the file decides.

    Args:
      data: all ratings.
      part: which one is held out. For validation the last items are left out altogether; for the test the ones before
        them are trained on.
      negatives: how many items each held-out one is ranked among.

    Returns:
      The split; users with fewer than three ratings are only trained on.

    Raises:
      ValueError: `part` is none of `PARTS`, or a user has touched nearly all items.
    """
    _check(part)
    ratings = data.ratings
    order = np.lexsort((np.arange(len(ratings)), ratings.time, ratings.user))
    counts = np.bincount(ratings.user, minlength=data.users)
    ends = np.cumsum(counts)
    users = np.flatnonzero(counts >= 3)
    last, before = order[ends[users] - 1], order[ends[users] - 2]
    held_out, left_out = (last, last) if part == "test" else (before, np.concatenate([last, before]))
    rest = np.setdiff1d(np.arange(len(ratings)), left_out)

    seen = touched(ratings, data.users, data.items)
    # Validation and test draw differently, so that no choice made on one fits the negatives of the other.
    rng = np.random.default_rng((_SEED, PARTS.index(part)))
    drawn = []
    for user in users:
        unseen = np.flatnonzero(~seen[user])
        if len(unseen) < negatives:
            raise ValueError(f"user {user} has not touched only {len(unseen)} items, but {negatives} are to be drawn.")
        drawn.append(rng.choice(unseen, negatives, replace=False))
    candidates = np.concatenate([ratings.item[held_out][:, None], np.stack(drawn)], axis=1)
    return RankingSplit(ratings.at(rest), users.astype(np.int32), candidates.astype(np.int32))


def touched(ratings: Ratings, users: int, items: int) -> np.ndarray:
    """bool[users, items]: who has rated what."""
    seen = np.zeros((users, items), bool)
    seen[ratings.user, ratings.item] = True
    return seen


def _check(part: str) -> None:
    if part not in PARTS:
        raise ValueError(f"part={part!r}; allowed are {', '.join(PARTS)}.")
