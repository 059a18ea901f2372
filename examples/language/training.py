"""Trains the dense language model once and keeps it: a second run loads it.

    FOLDER/settings.json      the configuration and a hash of the data; others are refused
    FOLDER/dense/state/       Orbax checkpoints: parameters and optimiser state
    FOLDER/dense/result.json  appears when the training has finished

Each step is a pure function of `(seed, step)` and the state before it, so a training that was stopped goes on to the
same bits.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from examples.classification import checkpoints
from examples.data import text
from examples.language.evaluation import Apply, make_evaluator, token_losses
from examples.models.transformer import Decoder
from jaxprune.pipeline.records import Records

PyTree = Any


@dataclass(frozen=True)
class Config:
    """A language model and its training; the defaults take about five minutes on two CPU cores.

    Attributes:
      vocabulary: tokens of the tokenizer.
      width: features of the residual stream.
      depth: blocks.
      heads: of each attention.
      hidden: features of each MLP.
      context: tokens that the model sees.
      steps: of the training.
      batch_size: windows a step.
      learning_rate: the highest; reached after a warm-up over a twentieth of the steps, then a cosine to a tenth.
      weight_decay: of AdamW, on the kernels and the embedding.
      seed: of the initial parameters and the batches.
      evaluation_windows: windows of a held-out split that are measured, spread over all of it.
      checkpoint_every: steps.
    """

    vocabulary: int = 1_024
    width: int = 128
    depth: int = 4
    heads: int = 4
    hidden: int = 352
    context: int = 128
    steps: int = 2_800
    batch_size: int = 8
    learning_rate: float = 5e-3
    weight_decay: float = 0.1
    seed: int = 0
    evaluation_windows: int = 512
    checkpoint_every: int = 200


class State(NamedTuple):
    """All that a checkpoint needs besides the step."""

    params: PyTree
    opt_state: PyTree


class Trained(NamedTuple):
    """A trained model.

    Attributes:
      model: the Linen module.
      params: its parameters.
      data: the corpus.
    """

    model: Decoder
    params: PyTree
    data: text.TextData


def make_model(config: Config, scan: bool = False) -> Decoder:
    """The untrained module of a configuration; `scan` stacks its blocks."""
    return Decoder(config.vocabulary, config.width, config.depth, config.heads, config.hidden, scan)


def make_apply(model: Decoder) -> Apply:
    """The pure function `apply(params, tokens) -> logits` of a module."""

    def apply(params: PyTree, tokens: jax.Array) -> jax.Array:
        return model.apply({"params": params}, tokens)  # pyright: ignore[reportReturnType]

    return apply


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW behind a clip by the global norm, with warm-up and cosine decay."""
    warm = max(1, config.steps // 20)
    peak = config.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warm, max(warm + 1, config.steps), 0.1 * peak)

    def decayed(params: PyTree) -> PyTree:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, mask=decayed),
    )


def random_windows(key: jax.Array, tokens: jax.Array, count: int, context: int) -> jax.Array:
    """Draws windows `(count, context + 1)` of a text, with replacement."""
    starts = jax.random.randint(key, (count,), 0, tokens.shape[0] - context)
    return tokens[starts[:, None] + jnp.arange(context + 1)[None, :]]


def calibration_batches(
    data: text.TextData, count: int, batch_size: int, context: int, seed: int = 0
) -> list[jax.Array]:
    """Token ids `(batch_size, context)` drawn from the training text, `count` batches of them."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, len(data.train) - context + 1, (count, batch_size, 1))
    return [jnp.asarray(data.train[rows + np.arange(context)]) for rows in starts]


def train_or_load(config: Config, folder: Path, data_dir: Path | None = None) -> Trained:
    """Loads the model that `folder` holds, or goes on with its training, or trains it from the start.

    Args:
      config: the model and its training.
      folder: where checkpoints and the result are kept.
      data_dir: a folder of yours with text; by default the standard library's source.

    Raises:
      ValueError: if the folder holds a model of another configuration or of other data.
    """
    data = text.load(data_dir, config.vocabulary)
    settings = {**asdict(config), "data_source": data.source, "data_fingerprint": data.fingerprint()}
    Records(folder, settings)  # refuses a folder of other settings
    store = checkpoints.RunStore(folder / "dense")
    try:
        first = _make_init(config)(jax.random.fold_in(jax.random.key(config.seed), 0))
        start, state = store.restore(first)
        if store.result() is None:
            state, seconds = _train(config, data, store, start, state)
            measured = {"steps": config.steps, "steps_measured": config.steps - start, "seconds_measured": seconds}
            store.finish(measured | _measure(config, data, state.params))
    finally:
        store.close()
    return Trained(make_model(config), state.params, data)


def read_result(folder: Path) -> dict[str, Any]:
    """What was measured of the dense model in `folder`: `validation` and `test` quality, parameters, time.

    Raises:
      FileNotFoundError: if no training has finished there.
    """
    store = checkpoints.RunStore(folder / "dense")
    try:
        result = store.result()
    finally:
        store.close()
    if result is None:
        raise FileNotFoundError(f"{folder} holds no trained model; call train_or_load first")
    return result


@functools.cache
def _apply_of(config: Config) -> Apply:
    """The same function for equal configurations, so that it is compiled once."""
    return make_apply(make_model(config))


@functools.cache
def _make_init(config: Config) -> Callable[[jax.Array], State]:
    """The compiled function from a key to the state before step 0."""
    model, tokens = make_model(config), jnp.zeros((1, config.context), jnp.int32)

    @jax.jit
    def init(key: jax.Array) -> State:
        params = model.init(key, tokens)["params"]
        return State(params, make_optimizer(config).init(params))

    return init


@functools.cache
def _make_step(config: Config) -> Callable[..., tuple[State, jax.Array]]:
    """The compiled training step: state, key, number of the step and all training tokens to state and loss."""
    apply, optimizer = _apply_of(config), make_optimizer(config)

    @jax.jit
    def step(state: State, key: jax.Array, number: jax.Array, tokens: jax.Array) -> tuple[State, jax.Array]:
        windows = random_windows(jax.random.fold_in(key, number), tokens, config.batch_size, config.context)
        loss, grads = jax.value_and_grad(lambda params: token_losses(apply, params, windows).mean())(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), loss

    return step


def _train(
    config: Config, data: text.TextData, store: checkpoints.RunStore, start: int, state: State
) -> tuple[State, float]:
    """Runs the steps that are left; returns the last state and the seconds that they took."""
    step = _make_step(config)
    tokens, key = jnp.asarray(data.train), jax.random.fold_in(jax.random.key(config.seed), 1)
    began = time.perf_counter()
    with tqdm(total=config.steps, initial=start, desc="dense model", unit="step") as bar:
        for number in range(start, config.steps):
            state, loss = step(state, key, jnp.asarray(number, jnp.int32), tokens)
            done = number + 1
            bar.update()
            if done % 20 == 0 or done == config.steps:
                bar.set_postfix(loss=f"{float(loss):.3f}")
            if done % config.checkpoint_every == 0 or done == config.steps:
                store.save(done, jax.block_until_ready(state))
    return state, time.perf_counter() - began


def _measure(config: Config, data: text.TextData, params: PyTree) -> dict[str, Any]:
    """Counts parameters and measures the held-out splits."""
    result: dict[str, Any] = {"parameters": int(sum(np.size(leaf) for leaf in jax.tree.leaves(params)))}
    for split in ("validation", "test"):
        evaluate = make_evaluator(
            make_apply(make_model(config)), data, split, config.context, config.evaluation_windows
        )
        result[split] = evaluate(params)._asdict()
    return result
