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
        size, exact = jnp.asarray(n, count_dtype(n)), sparsity * float(n)
        # A half is kept, as below.
        removed = jnp.floor(exact) + (exact - jnp.floor(exact) > 0.5).astype(exact.dtype)
        return jnp.clip(size - removed.astype(size.dtype), min(1, n), size)
    # float64 on the host; the tiny offset undoes 1 - 0.9 = 0.0999..., and keeps a half.
    return int(np.clip(round((1 - float(sparsity)) * n + 1e-9 * np.sign(n)), min(1, n), n))


def scaled(count: Any, n: int, progress: jax.Array | None) -> Any:
    """The kept count on the way from `n` to `count`; exactly `count` at progress 1."""
    if progress is None:
        return count
    size = jnp.asarray(n, count_dtype(n))
    removed = size - jnp.asarray(count, size.dtype)
    partial = jnp.round(removed.astype(jnp.float32) * progress).astype(size.dtype)
    return size - jnp.where(progress >= 1, removed, jnp.minimum(partial, removed))


def count_dtype(n: int, what: str = "weights") -> jnp.dtype:
    """The integers that count to `n` in a program.

    Raises:
      ValueError: int32 does not reach so far, and wider integers are off.
    """
    if n < 2**31:
        return jnp.dtype(jnp.int32)
    if not jax.config.jax_enable_x64:  # pyright: ignore
        raise ValueError(
            f"{n} {what} are counted together, more than an int32 can count. Count leaf by leaf (allocation uniform "
            "or erk, with a static sparsity), or enable 64-bit integers with jax.config.update('jax_enable_x64', True)."
        )
    return jnp.dtype(jnp.int64)
