"""Dtypes of intermediate results, also where implicit promotion is forbidden (`jax_numpy_dtype_promotion=strict`)."""

import functools
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np


def at_least_float32(dtype: Any) -> np.dtype:
    """The dtype itself, or float32 where it is narrower.

    Example:
      >>> str(at_least_float32("float16"))
      'float32'
    """
    dtype = jnp.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def widest(dtypes: Iterable[Any]) -> np.dtype:
    """A floating or complex dtype that holds the values of all the given ones.

    Example:
      >>> str(widest([jnp.bfloat16, jnp.float16])), str(widest([jnp.bfloat16, jnp.bfloat16]))
      ('float32', 'bfloat16')
    """

    def both(a: np.dtype, b: np.dtype) -> np.dtype:
        if a == b:
            return a
        return np.promote_types(at_least_float32(a), at_least_float32(b))

    return functools.reduce(both, map(jnp.dtype, dtypes))
