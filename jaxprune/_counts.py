"""A sparsity as a number: its range, and the exact count that it leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_traced(value: Any) -> bool:
    """Whether a number is only known when the compiled program runs."""
    return isinstance(value, Tracer)


def check_sparsity(value: Any, what: str = "sparsity") -> None:
    """Raises where a static sparsity lies outside [0, 1); traced values pass."""
    if is_traced(value):
        return
    try:
        number = float(value)
    except TypeError as error:
        raise TypeError(f"{what}={value!r}: a sparsity is a number, the fraction of zeros, in [0, 1).") from error
    if not 0 <= number < 1:
        raise ValueError(f"{what}={value}: a sparsity is the fraction of zeros, 0 <= sparsity < 1 (90 % is 0.9).")


def kept(sparsity: Any, n: int) -> Any:
    """`round((1 - s) n)`, at least 1: a host integer for a static sparsity, else an int32.

    Example:
      >>> kept(0.9, 1000)
      100
    """
    if is_traced(sparsity):
        return jnp.clip(n - jnp.round(sparsity * n).astype(jnp.int32), 1, n)
    # float64 on the host; the tiny offset undoes 1 - 0.9 = 0.0999...
    return int(np.clip(round((1 - float(sparsity)) * n + 1e-9 * np.sign(n)), min(1, n), n))


def scaled(count: Any, n: int, progress: jax.Array | None) -> Any:
    """The kept count on the way from `n` to `count`; exactly `count` at progress 1."""
    if progress is None:
        return count
    removed = jnp.asarray(n - count, jnp.int32)
    partial = jnp.round(removed.astype(jnp.float32) * progress).astype(jnp.int32)
    return n - jnp.where(progress >= 1, removed, jnp.minimum(partial, removed))
