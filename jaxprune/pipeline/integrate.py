"""`integrate`: makes a pruned model physically smaller where it can be, and proves that it computes the same."""

import dataclasses
from typing import Any

from jaxprune.pipeline.batches import Apply
from jaxprune.shrinking import Plan, Verification, shrink, shrunk_function, verify
from jaxprune.tracing import Model
from jaxprune.trees import PyTree


@dataclasses.dataclass(frozen=True)
class Integrated:
    """A pruned model as it is used and stored.

    Attributes:
      apply_fn: `(params, inputs) -> outputs`; of the smaller arrays, where indices were cut.
      params: its parameters.
      verification: the smaller function against the masked one; None where nothing was cut.
    """

    apply_fn: Apply
    params: PyTree
    verification: Verification | None


def integrate(apply_fn: Apply, model: Model, params: PyTree, plan: Plan | None, inputs: Any) -> Integrated:
    """Cuts what a plan does not keep out of parameters and function, and verifies the result.

    Zeros of single weights stay where they are, in arrays of the same size: only a plan makes a model smaller.

    Args:
      apply_fn: the dense function.
      model: its trace.
      params: pruned parameters, in full shape.
      plan: the indices that stay, or None for a model of which single weights are pruned.
      inputs: what to compare the two functions on.

    Returns:
      See `Integrated`.

    Raises:
      AssertionError: groups that should be exact disagree by more than rounding explains.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
      >>> apply_fn = lambda p, x: x @ p["a"] @ p["b"]
      >>> model = jp.trace(apply_fn, params, jnp.ones((1, 2)))
      >>> made = integrate(apply_fn, model, params, jp.Plan({"a:1": [True, False, True]}), jnp.ones((1, 2)))
      >>> made.params["a"].shape, made.apply_fn(made.params, jnp.ones((1, 2))).tolist()
      ((2, 2), [[4.0, 4.0]])
    """
    if plan is None:
        return Integrated(apply_fn, params, None)
    small = shrink(model, plan, params)
    return Integrated(shrunk_function(model, plan), small, verify(model, plan, params, inputs, strict=True))
