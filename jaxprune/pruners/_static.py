"""Masks fixed from the start: random, given, or from any score at initialisation."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import masks as masks_
from jaxprune import scores
from jaxprune.allocation import uniform
from jaxprune.compute import Rule
from jaxprune.pruners._pruner import Context, MaskSettings, Pruner
from jaxprune.scores import Score
from jaxprune.states import given_masks, hide_like
from jaxprune.structures import Structure, Unstructured
from jaxprune.trees import PyTree, Where


def static(
    sparsity: float | None = None,
    *,
    masks: PyTree | None = None,
    score: Score = scores.random,
    rounds: int = 1,
    structure: Structure = Unstructured(),
    allocation: Any = uniform,
    where: Where = None,
    rules: Sequence[Rule] = (),
    grads: PyTree | None = None,
) -> Pruner:
    r"""Masks chosen once, when the optimiser state is made.

    With `score=jp.scores.saliency` and `grads` this is SNIP, with `jp.scores.grasp(loss)` GraSP, and with
    `jp.scores.synflow(...)` and `rounds=100` iterative SynFlow. In round r of R the density is `d^(r/R)`; weights
    pruned in earlier rounds are zero and stay pruned.

    Args:
      sparsity: fraction of zeros; not with `masks`.
      masks: given masks, used as they are (copied).
      score: what decides at initialisation.
      rounds: number of score-and-prune rounds.
      structure: which weights go together.
      allocation: how the sparsity is shared.
      where: which parameters may be pruned.
      rules: exceptions by path.
      grads: gradients at initialisation, for the scores that need them.

    Returns:
      A pruner.

    Raises:
      ValueError: both or neither of `sparsity` and `masks` are given, or `rounds < 1`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = jp.sparsify(optax.sgd(0.1), jp.pruners.static(0.5), key=jax.random.key(0))
      >>> state = tx.init({"w": jnp.ones((2, 4))})
      >>> int(jp.get_masks(state)["w"].sum())
      4
    """
    fixed_elsewhere = masks is not None or rules or not isinstance(structure, Unstructured)
    if (masks is not None and sparsity is not None) or (
        sparsity is None and not fixed_elsewhere and callable(allocation)
    ):
        raise ValueError("static() takes either a sparsity or masks=; give exactly one of them.")
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least one round is needed.")
    settings = MaskSettings(sparsity, score, structure, allocation, where, rules)

    def init(params: PyTree, key: jax.Array | None) -> tuple[PyTree, Any]:
        if masks is not None:
            return given_masks(params, masks), ()
        given = None if grads is None else hide_like(params, grads)
        if rounds == 1:
            return settings.masks(params, grads=given, key=key), ()
        if not isinstance(sparsity, (int, float)):
            raise ValueError(f"rounds={rounds} needs a static sparsity, not {sparsity!r}.")

        target = float(sparsity)

        def one_round(i: jax.Array, current: PyTree) -> PyTree:
            part = (i + 1).astype(jnp.float32) / rounds
            progress = (1 - (1 - target) ** part) / max(target, 1e-12)
            progress = jnp.where(i + 1 >= rounds, 1.0, progress)
            left = masks_.apply_masks(params, current)
            return settings.masks(left, progress, grads=given, key=key, among=current)

        dense = jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), params)
        return jax.lax.fori_loop(0, rounds, one_round, dense), ()

    def update(current: PyTree, state: Any, context: Context) -> tuple[PyTree, Any]:
        del context
        return current, state

    return Pruner(init, lambda step: step < 0, update, moves=False)
