"""`verify`: does the shrunk function compute what the masked model computes?"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.masks import apply_masks
from jaxprune.shrinking.apply import shrink, shrunk_function
from jaxprune.shrinking.plan import Plan
from jaxprune.tracing import Model
from jaxprune.tracing.evaluate import take
from jaxprune.tracing.exactness import APPROXIMATE
from jaxprune.trees import PyTree

# How many times the rounding noise of the dense model the two may be apart: they sum in different orders.
_NOISE_MARGIN = 64


@dataclasses.dataclass(frozen=True)
class Verification:
    """How far the shrunk function is from the masked model.

    Attributes:
      error: the largest difference between their outputs, as a fraction of the largest output.
      noise: the same between the masked model of the exact groups and itself after each weight was moved by one
        rounding error.
      approximate: the groups of the plan that are not exact, and why; they account for what `error` exceeds `noise`.
      exact_error: the error of the plan without those groups; equal to `error` where there are none.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
      >>> jp.verify(model, jp.Plan({"a:1": [True, False, True]}), params, jnp.ones(2)).exact
      True
    """

    error: float
    noise: float
    approximate: dict[str, str]
    exact_error: float

    @property
    def exact(self) -> bool:
        """Whether the exact groups agree up to rounding; false with a NaN, which nothing can be told from."""
        return self.exact_error <= _NOISE_MARGIN * max(self.noise, float(jnp.finfo(jnp.float32).eps)) < math.inf

    def __float__(self) -> float:
        return self.error

    def __str__(self) -> str:
        lines = [f"error {self.error:.1e} of the largest output, rounding noise {self.noise:.1e}"]
        lines += [f"  {name} is approximate: {reason}" for name, reason in self.approximate.items()]
        return "\n".join(lines)


def verify(model: Model, plan: Plan, params: PyTree, *args: Any, strict: bool = False) -> Verification:
    """Compares the shrunk function with the masked model on given arguments.

    In the masked model the weights that read a removed index are zero, and where that does not suffice all weights of
    the index are.

    Args:
      model: the traced model.
      plan: which indices stay.
      params: the full parameters.
      args: arguments to compare on.
      strict: whether to raise when groups that should be exact disagree.

    Returns:
      The errors.

    Raises:
      ValueError: the plan does not fit the model.
      AssertionError: with `strict`, the exact groups disagree by more than rounding explains.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
      >>> float(verify(model, jp.Plan({"a:1": [True, False, True]}), params, jnp.ones(2)))
      0.0
    """
    plan.check(model)
    approximate = {
        name: str(model.groups[name].reason)
        for name, mask in plan.keep.items()
        if model.groups[name].exactness == APPROXIMATE and not mask.all()
    }
    # A masked model with an approximate group may divide by zero: what is exact is judged without them.
    exact = Plan({name: mask for name, mask in plan.keep.items() if name not in approximate})
    exact_error, masked = _error(model, exact, params, args)
    error = _error(model, plan, params, args)[0] if approximate else exact_error
    moved = _outputs(model, _nudged(_masked_params(model, exact, params)), args)
    noise = _distance(masked, moved)
    result = Verification(error, noise, approximate, exact_error)
    if strict and not result.exact:
        raise AssertionError(
            f"the shrunk function departs from the masked model by {exact_error:.1e} of the largest output, the "
            f"rounding noise of the model is {noise:.1e}. The groups that should be exact are not: please report this "
            "model."
        )
    return result


def _error(model: Model, plan: Plan, params: PyTree, args: tuple[Any, ...]) -> tuple[float, list[Any]]:
    masked = _outputs(model, _masked_params(model, plan, params), args)
    small = jax.tree.leaves(jax.jit(shrunk_function(model, plan))(shrink(model, plan, params), *args))
    outputs = model.program.graph.outputs
    sizes = model.sizes(plan.keep)
    cut = [take(array, value, sizes) for value, array in zip(outputs, masked, strict=True)]
    return _distance(cut, small), masked


def _outputs(model: Model, params: PyTree, args: tuple[Any, ...]) -> list[Any]:
    return jax.tree.leaves(jax.jit(model.apply_fn)(params, *args))


def _masked_params(model: Model, plan: Plan, params: PyTree) -> PyTree:
    trees.check_same_structure(params, model.params, "params")
    return jax.jit(apply_masks)(params, plan.masks(model, consumers_only=True))


@jax.jit
def _nudged(params: PyTree) -> PyTree:
    """Every weight one rounding error up or down, by its position."""

    def nudge(leaf: jax.Array) -> jax.Array:
        if not trees.is_floating(leaf):
            return leaf
        eps, third = jnp.finfo(leaf.dtype).eps, jnp.arange(leaf.size).reshape(leaf.shape) % 3 == 0
        return leaf * jnp.where(third, 1 + eps, 1 - eps).astype(leaf.dtype)

    return jax.tree.map(nudge, params)


def _distance(a: list[Any], b: list[Any]) -> float:
    """The largest difference between outputs, as a fraction of the largest element of each; infinite with a NaN."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if jnp.shape(x) != jnp.shape(y):
            raise AssertionError(f"an output has shape {jnp.shape(y)} after the cut, not {jnp.shape(x)}: please report")
        if not np.size(x) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            continue
        wide = jnp.complex64 if jnp.issubdtype(x.dtype, jnp.complexfloating) else jnp.float32
        one, two = (np.asarray(jnp.asarray(array).astype(wide)) for array in (x, y))
        if np.isnan(one).any() or np.isnan(two).any():
            return math.inf
        same = one == two  # infinities, too
        scale = float(np.max(np.abs(one), initial=0.0, where=np.isfinite(one)))
        apart = np.abs(np.where(same, 0, one) - np.where(same, 0, two))
        worst = max(worst, float(np.max(apart)) / (scale or 1.0))
    return worst
