"""Training: one loop for every method, model and image set.

Each step is a pure function of `(seed, step)` and the state before it: the batch is drawn from
`fold_in(key(seed), step)`. So a run that was stopped goes on to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from examples.data.imagenet import StreamedData
from examples.data.images import ImageData

PyTree = Any
Apply = Callable[[PyTree, jax.Array], jax.Array]
_EVALUATION_BATCH = 500


class TrainState(NamedTuple):
    """All that a checkpoint needs besides the step; the masks live in `opt_state`."""

    params: PyTree
    opt_state: PyTree


Update = Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, jax.Array]]
# (state, key, first step, number of steps) -> (state, mean loss)
Advance = Callable[[TrainState, jax.Array, int, int], tuple[TrainState, jax.Array]]


class Feed(Protocol):
    """Brings images to the training step."""

    def advance(self, update: Update) -> Advance:
        """Makes a compiled function that runs a number of steps."""
        ...

    def first_batch(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The batch of step 0."""
        ...

    def test_batches(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Goes through the test images once."""
        ...


@partial(jax.jit, static_argnames=("size", "batch_size"))
def batch_indices(key: jax.Array, step: jax.Array | int, size: int, batch_size: int) -> jax.Array:
    """Which images a step sees: drawn with replacement, a function of key and step alone."""
    return jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, size)


def normalise(images: jax.Array) -> jax.Array:
    """Bytes to floats of about zero mean and unit variance."""
    return (images.astype(jnp.float32) - 127.5) / 64.0


class MemoryFeed:
    """Images that lie on the device as bytes; batches are gathered inside the compiled step."""

    def __init__(self, data: ImageData, batch_size: int, prepare: Callable[[jax.Array], jax.Array] = normalise) -> None:
        """Puts the training images on the device.

        Args:
          data: the image set.
          batch_size: images a step.
          prepare: makes floats of a batch of bytes.
        """
        self._data, self._batch_size, self._prepare = data, batch_size, prepare
        self._x, self._y = jnp.asarray(data.train_x), jnp.asarray(data.train_y)

    def advance(self, update: Update) -> Advance:
        """See `Feed`; several steps are one `lax.scan`."""
        size, batch_size = len(self._data.train_x), self._batch_size

        @partial(jax.jit, static_argnames="count")
        def run(
            state: TrainState,
            key: jax.Array,
            start: jax.Array,
            x: jax.Array,
            y: jax.Array,
            count: int,
        ) -> tuple[TrainState, jax.Array]:
            def one(state: TrainState, step: jax.Array) -> tuple[TrainState, jax.Array]:
                chosen = batch_indices(key, step, size, batch_size)
                return update(state, self._prepare(x[chosen]), y[chosen])

            if count == 1:  # no loop: XLA:CPU runs convolutions inside a loop on one thread
                return one(state, start)
            state, losses = jax.lax.scan(one, state, start + jnp.arange(count, dtype=jnp.int32))
            return state, losses.mean()

        return lambda state, key, start, count: run(
            state, key, jnp.asarray(start, jnp.int32), self._x, self._y, count=count
        )

    def first_batch(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Feed`."""
        chosen = batch_indices(key, 0, len(self._data.train_x), self._batch_size)
        return self._prepare(self._x[chosen]), self._y[chosen]

    def test_batches(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        """See `Feed`."""
        x, y = self._data.test_x, self._data.test_y
        for start in range(0, len(x), _EVALUATION_BATCH):
            part = slice(start, start + _EVALUATION_BATCH)
            yield self._prepare(jnp.asarray(x[part])), jnp.asarray(y[part])


class StreamFeed:
    """Images that are read, decoded and cropped for each step."""

    def __init__(self, data: StreamedData, batch_size: int, side: int) -> None:
        """Keeps the settings.

        Args:
          data: the image set.
          batch_size: images a step.
          side: of the square crops, in pixels.
        """
        self._data, self._batch_size, self._side = data, batch_size, side

    def advance(self, update: Update) -> Advance:
        """See `Feed`; steps are compiled one by one, since their images come from the host."""
        compiled = jax.jit(update)

        def run(state: TrainState, key: jax.Array, start: int, count: int) -> tuple[TrainState, jax.Array]:
            losses: list[jax.Array] = []
            for step in range(start, start + count):
                state, loss = compiled(state, *self._batch(key, step))
                losses.append(loss)
            return state, jnp.stack(losses).mean()

        return run

    def first_batch(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Feed`."""
        return self._batch(key, 0)

    def test_batches(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        """See `Feed`; centre crops."""
        split = self._data.test
        for start in range(0, split.size, self._batch_size):
            chosen = np.arange(start, min(start + self._batch_size, split.size))
            x, y = split.batch(chosen, self._side, crop_seed=None)
            yield normalise(jnp.asarray(x)), jnp.asarray(y)

    def _batch(self, key: jax.Array, step: int) -> tuple[jax.Array, jax.Array]:
        split = self._data.train
        chosen = np.asarray(batch_indices(key, step, split.size, self._batch_size))
        words = np.asarray(jax.random.key_data(jax.random.fold_in(key, step)))
        x, y = split.batch(chosen, self._side, crop_seed=[int(word) for word in words])
        return normalise(jnp.asarray(x)), jnp.asarray(y)


def mean_loss(apply: Apply, params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean cross-entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean()


def forward_params(state: TrainState, pruned: bool) -> PyTree:
    """The parameters that the network computes with.

    For most methods these are `state.params`, whose zeros the optimiser keeps. Straight-through
    methods, Top-KAST and movement store dense weights; there the masks are applied here.
    """
    return jp.sparse_params(state.params, state.opt_state) if pruned else state.params


def make_update(apply: Apply, optimizer: optax.GradientTransformation, pruned: bool) -> Update:
    """Makes the training step: plain Optax, whatever the method."""

    def update(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
        def loss_of(params: PyTree) -> jax.Array:
            return mean_loss(apply, params, x, y)

        loss, grads = jax.value_and_grad(loss_of)(forward_params(state, pruned))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), loss

    return update


@dataclass
class Clock:
    """Measured step times, in seconds a step; calls that compiled something are left out."""

    times: list[float]
    seen: set[int]

    def measure(self, advance: Callable[[], tuple[TrainState, jax.Array]], count: int) -> Any:
        """Runs `advance`, waits for its result and notes the time."""
        begin = time.perf_counter()
        result = jax.block_until_ready(advance())
        if count in self.seen:
            self.times.append((time.perf_counter() - begin) / count)
        self.seen.add(count)
        return result

    def median_ms(self) -> float | None:
        """The median, in milliseconds, or `None` where nothing was measured."""
        return float(np.median(self.times)) * 1e3 if self.times else None


def train(
    advance: Advance,
    state: TrainState,
    key: jax.Array,
    *,
    start: int,
    steps: int,
    steps_per_call: int,
    clock: Clock,
    after_call: Callable[[TrainState, int, float], bool],
) -> tuple[TrainState, int]:
    """Runs the steps from `start` to `steps`.

    Calls end at multiples of `steps_per_call` whatever `start` is, so that a run that is resumed
    compiles and computes the same as one that never stopped.

    Args:
      advance: from `Feed.advance`.
      state: the state before step `start`.
      key: of the batches.
      start: the first step to run.
      steps: the number of steps in total.
      steps_per_call: steps in one compiled call.
      clock: takes the step times.
      after_call: gets the state, the number of steps done and the loss; true to stop here.

    Returns:
      The state and the number of steps done.
    """
    done = start
    while done < steps:
        count = min(steps_per_call - done % steps_per_call, steps - done)
        state, loss = clock.measure(partial(advance, state, key, done, count), count)
        done += count
        if after_call(state, done, float(loss)):
            break
    return state, done


def accuracy(apply: Apply, params: PyTree, feed: Feed) -> float:
    """The fraction of test images that are classified correctly."""
    compiled = jax.jit(lambda p, x, y: jnp.sum(jnp.argmax(apply(p, x), axis=-1) == y))
    correct = count = 0
    for x, y in feed.test_batches():
        correct += int(compiled(params, x, y))
        count += len(y)
    return correct / count
