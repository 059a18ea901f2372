"""Top-KAST: a small forward set within a larger backward set."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import scores
from jaxprune._counts import check_sparsity, is_traced
from jaxprune.allocation import uniform
from jaxprune.compute import Rule
from jaxprune.pruners._pruner import Context, MaskSettings, Pruner, check_strength, is_off
from jaxprune.schedules import Schedule
from jaxprune.scores import Score
from jaxprune.structures import Structure, Unstructured
from jaxprune.trees import PyTree, Where


def top_kast(
    sparsity: float,
    *,
    backward_sparsity: float,
    penalty: float = 1e-4,
    every: int = 1,
    end: int | None = None,
    score: Score = scores.magnitude,
    structure: Structure = Unstructured(),
    allocation: Any = uniform,
    where: Where = None,
    rules: Sequence[Rule] = (),
) -> Pruner:
    r"""The forward pass uses the top `1 - sparsity` weights, learning reaches the top `1 - backward_sparsity`.

    Take the gradient at `jp.sparse_params(params, opt_state)`. The exploration penalty adds `penalty w` to the
    gradient of the forward set and `penalty w / density` to the rest of the backward set. Weights outside the
    backward set stand still. Its state holds two masks.

    Args:
      sparsity: fraction of zeros in the forward pass.
      backward_sparsity: fraction of weights that do not learn; at most `sparsity`.
      penalty: strength of the exploration penalty.
      every: steps between mask updates.
      end: last step of a mask update; None goes on for ever.
      score: what is masked first (lowest); one that needs gradients leaves all dense until the first update.
      structure: which weights go together; not N:M, whose pattern fixes one sparsity.
      allocation: how the sparsity is shared.
      where: which parameters may be pruned.
      rules: exceptions by path, of both sets.

    Returns:
      A pruner with dense storage.

    Raises:
      ValueError: the sparsities, `penalty` or `every` are out of range.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = jp.sparsify(optax.sgd(0.1), jp.pruners.top_kast(0.75, backward_sparsity=0.5))
      >>> params = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
      >>> jp.sparse_params(params, tx.init(params))["w"].tolist()
      [[4.0, 0.0, 0.0, 0.0]]

    References:
      Jayakumar et al. 2021, arXiv 2106.03517.
    """
    check_sparsity(sparsity)
    check_sparsity(backward_sparsity, "backward_sparsity")
    if not is_traced(sparsity) and not is_traced(backward_sparsity) and backward_sparsity > sparsity:
        raise ValueError(
            f"backward_sparsity={backward_sparsity} > sparsity={sparsity}: the backward set holds the forward set, so "
            "backward_sparsity <= sparsity."
        )
    check_strength(penalty, "penalty")
    last = 2**31 - 1 if end is None else end
    plan = Schedule(jnp.ones_like, 0, last, every)
    forward = MaskSettings(sparsity, score, structure, allocation, where, rules)
    backward = MaskSettings(backward_sparsity, score, structure, allocation, where, rules)

    def init(params: PyTree, key: jax.Array | None) -> tuple[PyTree, Any]:
        return forward.at_start(params, None, key), backward.at_start(params, None, key)

    def update(masks: PyTree, state: Any, context: Context) -> tuple[PyTree, Any]:
        del masks, state
        return forward.from_context(context), backward.from_context(context)

    def regularize(grads: PyTree, params: PyTree, masks: PyTree, state: Any) -> PyTree:
        del state

        def add(g: jax.Array, p: jax.Array, m: jax.Array) -> jax.Array:
            strength = jnp.where(m, penalty, penalty / (1 - sparsity)).astype(p.dtype)
            return g + (strength * p).astype(g.dtype)

        return jax.tree.map(lambda g, p, m, c: add(g, p, m) if c else g, grads, params, masks, chosen(params))

    def chosen(params: PyTree) -> PyTree:
        forms = forward.structures(params)
        return jax.tree.unflatten(jax.tree.structure(params), [form is not None for form in forms])

    return Pruner(
        init,
        plan.is_update,
        update,
        regularize=None if is_off(penalty) else regularize,
        backward=lambda masks, state: state,
        moves=False,
        dense_parameters=True,
        after_step=True,
        masks_in_state=True,
    )
