"""The two tasks, in the form that `jp.compare` asks for: parameters, function, loss, batches, quality."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.data.ratings import RatingData, Ratings
from examples.models import recommender
from examples.recommender import metrics, splits

PyTree = Any
Apply = Callable[[PyTree, Any], Any]
Batch = tuple[dict[str, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; chosen for the dense model on the validation part.

    Attributes:
      width: numbers in a row of a table.
      steps: of training.
      batch_size: positives in a batch.
      learning_rate: of Adam, decaying to zero along a cosine.
      strength: of the penalty on the squares of the rows that a batch looks up.
      bias_strength: of that on biases.
      negatives: untouched items drawn for each positive.
    """

    width: int
    steps: int
    batch_size: int
    learning_rate: float
    strength: float
    bias_strength: float = 0.0
    negatives: int = 0


RECIPES: Mapping[str, Recipe] = {
    "factorisation": Recipe(64, 1_000, 4_000, 0.01, strength=0.12, bias_strength=0.02),
    "neural": Recipe(32, 1_000, 500, 0.02, strength=0.01, negatives=4),
}
MODELS = tuple(RECIPES)


@dataclass(frozen=True)
class Task:
    """What `jp.compare` needs, and what the report says.

    Attributes:
      apply: `(params, pairs) -> outputs`.
      init: a PRNG key to parameters.
      loss: `(outputs, targets) -> scalar`.
      batches: the batch of a step.
      evaluate: `(apply, params) -> quality`, higher is better.
      measure: `(apply, params) -> further values`.
      quality: what the quality is called.
      baselines: values by the name of a model without tables.
      example: pairs to trace with.
      held_out: the pairs that are asked for.
      train: what is trained on, for scores that count.
    """

    apply: Apply
    init: Callable[[jax.Array], PyTree]
    loss: Callable[[Any, Any], jax.Array]
    batches: Callable[[int], Batch]
    evaluate: Callable[[Apply, PyTree], float]
    measure: Callable[[Apply, PyTree], dict[str, float]]
    quality: str
    baselines: Mapping[str, dict[str, float]]
    example: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    train: Ratings


def rating_task(data: RatingData, part: splits.Part, recipe: Recipe) -> Task:
    """Matrix factorisation of the ratings."""
    split = splits.split_ratings(data, part)
    train, held_out = split.train, split.held_out
    mean = float(train.value.mean())
    pairs = _pairs(held_out)
    order = _shuffled(len(train), recipe.batch_size)

    def loss(outputs: Any, targets: Any) -> jax.Array:
        error = jnp.mean((outputs["rating"] - targets) ** 2)
        penalty = recipe.strength * jnp.mean(outputs["energy"])
        return error + penalty + recipe.bias_strength * jnp.mean(outputs["bias_energy"])

    def batches(step: int) -> Batch:
        chosen = train.at(order(step))
        return _pairs(chosen), chosen.value

    def measure(apply: Apply, params: PyTree) -> dict[str, float]:
        return {"rmse": metrics.rmse(np.asarray(apply(params, pairs)["rating"]), held_out.value)}

    biases = metrics.fit_biases(train, data.users, data.items)
    mean_rmse = metrics.rmse(np.full(len(held_out), mean), held_out.value)
    bias_rmse = metrics.rmse(biases.predict(held_out), held_out.value)
    return Task(
        apply=recommender.factorisation,
        init=lambda key: recommender.init_factorisation(key, data.users, data.items, recipe.width, mean),
        loss=loss,
        batches=batches,
        evaluate=lambda apply, params: -measure(apply, params)["rmse"],
        measure=measure,
        quality="RMSE",
        baselines={"global mean": {"rmse": mean_rmse}, "user + item bias": {"rmse": bias_rmse}},
        example=_pairs(train.at(np.arange(4))),
        held_out=pairs,
        train=train,
    )


def ranking_task(data: RatingData, part: splits.Part, recipe: Recipe) -> Task:
    """Neural collaborative filtering of who touched what; the ratings themselves are not used."""
    split = splits.split_rankings(data, part)
    train, candidates = split.train, split.candidates
    pairs = {"user": np.repeat(split.user, candidates.shape[1]), "item": candidates.reshape(-1)}
    # Only training interactions are known to the sampler: to spare the held-out items would tell the model of them.
    seen = splits.touched(train, data.users, data.items)
    order = _shuffled(len(train), recipe.batch_size)

    def loss(outputs: Any, targets: Any) -> jax.Array:
        logit = outputs["logit"]
        cross_entropy = jnp.mean(jax.nn.softplus(logit) - targets * logit)
        return cross_entropy + recipe.strength * jnp.mean(outputs["energy"])

    def batches(step: int) -> Batch:
        chosen = train.at(order(step))
        users = np.repeat(chosen.user, recipe.negatives)
        drawn = draw_unseen(np.random.default_rng((1, step)), users, seen)
        pairs = {"user": np.concatenate([chosen.user, users]), "item": np.concatenate([chosen.item, drawn])}
        return pairs, np.repeat(np.array([1, 0], np.float32), [len(chosen), len(drawn)])

    def measure(apply: Apply, params: PyTree) -> dict[str, float]:
        return _ranking(np.asarray(apply(params, pairs)["logit"]).reshape(candidates.shape))

    return Task(
        apply=recommender.neural,
        init=lambda key: recommender.init_neural(key, data.users, data.items, recipe.width),
        loss=loss,
        batches=batches,
        evaluate=lambda apply, params: measure(apply, params)["ndcg_10"],
        measure=measure,
        quality="NDCG@10",
        baselines={"popularity": _ranking(metrics.popularity_scores(train, candidates, data.items))},
        example=_pairs(train.at(np.arange(4))),
        held_out=pairs,
        train=train,
    )


TASKS: Mapping[str, Callable[[RatingData, splits.Part, Recipe], Task]] = {
    "factorisation": rating_task,
    "neural": ranking_task,
}


def draw_unseen(rng: np.random.Generator, users: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """For each user an item that it has not touched, all of them equally likely.

    Args:
      rng: draws.
      users: int[n].
      seen: bool[users, items].

    Returns:
      int32[n].
    """
    drawn = rng.integers(0, seen.shape[1], len(users), dtype=np.int32)
    while len(again := np.flatnonzero(seen[users, drawn])):
        drawn[again] = rng.integers(0, seen.shape[1], len(again), dtype=np.int32)
    return drawn


def _ranking(scores: np.ndarray) -> dict[str, float]:
    rank = metrics.ranks(scores)
    return {"ndcg_10": metrics.ndcg(rank), "hit_rate_10": metrics.hit_rate(rank)}


def _pairs(ratings: Ratings) -> dict[str, np.ndarray]:
    return {"user": ratings.user, "item": ratings.item}


def _shuffled(count: int, batch_size: int) -> Callable[[int], np.ndarray]:
    """The positions of the batch of any step: passes over all positions, each in an order of its own."""
    size = min(batch_size, count)
    per_pass = count // size

    @functools.lru_cache(maxsize=2)
    def shuffled(number: int) -> np.ndarray:
        return np.random.default_rng((0, number)).permutation(count)

    def positions(step: int) -> np.ndarray:
        number, place = divmod(step, per_pass)
        return shuffled(number)[place * size : (place + 1) * size]

    return positions
