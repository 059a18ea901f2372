"""What a method and a repair are, and what they share."""

import dataclasses
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import Statistic
from jaxprune.structures import Structure

Share: TypeAlias = float | jax.Array | None
Outcome: TypeAlias = tuple[jax.Array, jax.Array, dict[str, jax.Array]]


@runtime_checkable
class Method(Protocol):
    """Prunes one weight matrix, given a statistic of the inputs that it is multiplied with.

    A method is a frozen dataclass, so that it can be a static argument of `jit`, and it is pure: it can be jitted,
    and vmapped over a stack of layers, each with its own sparsity. The rows of the weights may be sharded.

    Attributes:
      stat: the statistic that it needs, a function of `jaxprune.calibration.statistics`.

    Example:
      >>> from jaxprune.posttraining import sparsegpt
      >>> isinstance(sparsegpt(), Method)
      True
    """

    @property
    def stat(self) -> Statistic:
        """The statistic of the inputs that the method needs."""
        ...

    def __call__(self, weights: jax.Array, stat: Any, sparsity: Share, structure: Structure) -> Outcome:
        """Chooses which weights are kept, and their new values.

        Args:
          weights: float32[out, K], the matrix W of `y = W x`.
          stat: the value of the statistic over the calibration data.
          sparsity: fraction of zeros in [0, 1); may be traced. None where the structure says it all (`NM`).
          structure: `Unstructured()`, `NM(n, m)`, whose groups run along K, or `Block((a, b))`, whose tiles are `a`
            inputs by `b` outputs.

        Returns:
          The new weights, float32[out, K], exactly zero where pruned; the mask, bool[out, K], True where kept; and
          facts about the run: always `damping` (float32, 0 where nothing was damped) and `fallback` (bool, whether
          more damping than asked for was necessary), then those of the method, with the same keys at every call.
        """
        ...


@runtime_checkable
class Repair(Protocol):
    """Gives the weights that a mask keeps new values, so that they make up for those that it prunes.

    As a method, it is a frozen dataclass and pure. Any mask will do: unstructured, N:M, blocks, whole columns.

    Example:
      >>> from jaxprune.posttraining import refit
      >>> isinstance(refit(), Repair)
      True
    """

    def __call__(self, weights: jax.Array, gram: jax.Array, mask: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Repairs one weight matrix.

        Args:
          weights: float32[out, K], before pruning.
          gram: float32[K, K], the Gram matrix of the inputs.
          mask: bool[out, K], True where kept.

        Returns:
          The new weights, exactly zero where pruned, and facts about the run, as those of a `Method`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class together:
    """Several statistics of the same inputs as one, whose value is a dictionary.

    Attributes:
      parts: pairs of a name and a statistic.

    Example:
      >>> from jaxprune.calibration.statistics import column_norms, gram
      >>> value = together((("norms", column_norms), ("gram", gram)))(jnp.ones((3, 2)))
      >>> value["norms"].tolist(), value["gram"].shape
      ([3.0, 3.0], (2, 2))
    """

    parts: tuple[tuple[str, Statistic], ...]

    def __call__(self, x: jax.Array, weights: jax.Array | None = None) -> dict[str, Any]:
        """The value of each statistic by its name."""
        return {name: part(x, weights) for name, part in self.parts}


def facts(damping: float | jax.Array = 0.0, fallback: bool | jax.Array = False, **more: jax.Array) -> dict[str, Any]:
    """The dictionary that methods and repairs return last."""
    return {"damping": jnp.asarray(damping, jnp.float32), "fallback": jnp.asarray(fallback), **more}


def squared_norms(stat: jax.Array) -> jax.Array:
    """float32[K], of the value of `column_norms` or from the diagonal of a Gram matrix.

    Raises:
      ValueError: it is neither.
    """
    if stat.ndim == 1:
        return stat
    if stat.ndim == 2 and stat.shape[0] == stat.shape[1]:
        return jnp.diagonal(stat)
    raise ValueError(
        f"a statistic of shape {stat.shape}: squared column norms have shape (K,) and a Gram matrix has (K, K); "
        "vmap over a stack of layers."
    )


def check_gram(weights: jax.Array, gram: jax.Array) -> None:
    """Raises where the Gram matrix is not one of the inputs of these weights."""
    k = weights.shape[-1]
    if weights.ndim != 2 or gram.shape != (k, k):
        raise ValueError(
            f"weights of shape {weights.shape} and a Gram matrix of shape {gram.shape}: (out, K) and (K, K) are "
            "needed; vmap over a stack of layers."
        )


def check_positive(**options: float) -> None:
    """Raises where an option of a method is not a positive number, naming it."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name}={value}; it must be positive.")


def check_damping(damping: float) -> None:
    """Raises where a damping is negative."""
    if not damping >= 0:
        raise ValueError(f"damping={damping}: a fraction of the mean squared norm of a column, 0 or more (0.01).")
