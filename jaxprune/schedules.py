r"""Schedules: how far pruning has come, as a function of the step.

A schedule gives the *progress* towards the target, from 0 (nothing pruned) to 1 (target). Each parameter follows it
to its own target, `s_i(t) = s_i * progress(t)`, so that every allocation meets its budget at every step. Masks move
at `begin`, `begin + every`, ... and always at `end`, where progress is exactly 1 whatever `every` is.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

__all__ = ["Schedule", "constant", "cosine", "cosine_decay", "cubic", "cyclic", "linear", "one_shot"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When masks are updated, and how far pruning has come then.

    Attributes:
      curve: a function of the elapsed fraction in [0, 1], with `curve(1) == 1`.
      begin: step of the first update.
      end: step of the last update.
      every: steps between updates.

    Raises:
      ValueError: `begin < 0`, `end < begin` or `every <= 0`.

    Example:
      >>> schedule = cubic(begin=0, end=10, every=4)
      >>> [step for step in range(12) if schedule.is_update(step)]
      [0, 4, 8, 10]
      >>> float(schedule(10))
      1.0
    """

    curve: Callable[[jax.Array], jax.Array]
    begin: int = 0
    end: int = 0
    every: int = 1

    def __post_init__(self):
        if self.begin < 0 or self.end < self.begin:
            raise ValueError(f"begin={self.begin}, end={self.end}: the steps must satisfy 0 <= begin <= end.")
        if self.every <= 0:
            raise ValueError(f"every={self.every}: the number of steps between two updates must be at least 1.")

    def is_update(self, step: jax.Array | int) -> jax.Array:
        """Whether masks are updated at this step."""
        step = jnp.asarray(step)
        due = ((step - self.begin) % self.every == 0) | (step == self.end)
        return (step >= self.begin) & (step <= self.end) & due

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """The progress at a step, a float32 in [0, 1]; exactly 1 from `end` on."""
        step = jnp.asarray(step)
        elapsed = jnp.asarray(step - self.begin, jnp.float32) / max(self.end - self.begin, 1)
        progress = jnp.clip(self.curve(jnp.clip(elapsed, 0.0, 1.0)), 0.0, 1.0)
        progress = jnp.where(step < self.begin, 0.0, progress)
        return jnp.where(step >= self.end, 1.0, progress).astype(jnp.float32)


def constant(begin: int = 0, end: int = 0, every: int = 1) -> Schedule:
    """The full target at every update.

    Example:
      >>> float(constant(begin=2, end=8)(2))
      1.0
    """
    return Schedule(lambda x: jnp.ones_like(x), begin, end, every)


def one_shot(step: int = 0) -> Schedule:
    """One update, at `step`, to the full target.

    Example:
      >>> [t for t in range(5) if one_shot(3).is_update(t)]
      [3]
    """
    return Schedule(lambda x: jnp.ones_like(x), step, step, 1)


def linear(begin: int, end: int, every: int = 1) -> Schedule:
    """Progress in proportion to the steps gone by.

    Example:
      >>> float(linear(0, 10)(5))
      0.5
    """
    return Schedule(lambda x: x, begin, end, every)


def cubic(begin: int, end: int, every: int = 1) -> Schedule:
    r"""The gradual schedule, fast while much is redundant: `1 - (1 - x)^3`.

    Example:
      >>> float(cubic(0, 10)(5))
      0.875

    References:
      Zhu and Gupta 2017, To prune, or not to prune, arXiv 1710.01878.
    """
    return Schedule(lambda x: 1 - (1 - x) ** 3, begin, end, every)


def cosine(begin: int, end: int, every: int = 1) -> Schedule:
    r"""Half a cosine wave, slow at both ends: `(1 - cos(pi x)) / 2`.

    Example:
      >>> round(float(cosine(0, 10)(5)), 4)
      0.5
    """
    return Schedule(lambda x: 0.5 * (1 - jnp.cos(jnp.pi * x)), begin, end, every)


def cyclic(begin: int, end: int, every: int = 1, *, cycles: int = 3) -> Schedule:
    """A cubic ramp repeated `cycles` times; each new cycle lets pruned weights grow back, the last ends at the target.

    Raises:
      ValueError: `cycles` is not positive.

    Example:
      >>> float(cyclic(0, 12, cycles=3)(4)), float(cyclic(0, 12, cycles=3)(12))
      (0.0, 1.0)
    """
    if cycles <= 0:
        raise ValueError(f"cycles={cycles}: at least one cycle is needed.")
    return Schedule(lambda x: 1 - (1 - (x * cycles) % 1.0) ** 3, begin, end, every)


def cosine_decay(step: jax.Array | int, end: int, initial: float) -> jax.Array:
    r"""The drop fraction of RigL, `initial / 2 (1 + cos(pi t / end))`, zero from `end` on.

    Example:
      >>> float(cosine_decay(0, 100, 0.3)) > 0.29
      True

    References:
      Evci et al. 2020, Rigging the Lottery, arXiv 1911.11134.
    """
    elapsed = jnp.clip(jnp.asarray(step).astype(jnp.float32) / max(end, 1), 0.0, 1.0)
    return 0.5 * initial * (1 + jnp.cos(jnp.pi * elapsed))
