"""Gradual pruning of whole indices in training: channels, heads, features, as the groups of a trace tie them."""

from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import schedules, selection, trees
from jaxprune import scores as weight_scores
from jaxprune.pruners import Pruner
from jaxprune.pruners._pruner import Context
from jaxprune.schedules import Schedule
from jaxprune.scores import Score
from jaxprune.shrinking.group_scores import Normalizer, Reduction, reduce_to_groups
from jaxprune.shrinking.matching import positions_in
from jaxprune.tracing import Model
from jaxprune.trees import PyTree, Where


def channel_gmp(
    model: Model,
    sparsity: float,
    *,
    begin: int,
    end: int,
    every: int = 1,
    schedule: Callable[[int, int, int], Schedule] = schedules.cubic,
    score: Score = weight_scores.magnitude,
    power: float = 2.0,
    reduction: Reduction = "mean",
    normalize: Normalizer = "mean",
    scope: str = "local",
    ignore: Where = None,
) -> Pruner:
    """Prunes the indices of a model's groups gradually, by any score of weights.

    All weights of a pruned index are zero, in all parameters that share it, so that after training
    `jp.plan_from_masks(model, masks)` cuts them away. Where the model would divide by them (a weight norm), only those
    that read the index are.

    Args:
      model: the traced model; what is optimised may be a part of its parameters, such as `params["params"]`.
      sparsity: the share of indices that is pruned at `end`.
      begin: step of the first mask update.
      end: step of the last one, which meets the target exactly.
      every: steps between updates.
      schedule: how progress grows from `begin` to `end`.
      score: any score of weights.
      power: the power that a weight's score is raised to before it is summed.
      reduction: as for `jp.group_scores`.
      normalize: as for `jp.group_scores`.
      scope: `"local"` prunes the same share of every group, `"global"` ranks all indices together; every group keeps
      one.
      ignore: parameters whose groups stay whole, in any form of `where`.

    Returns:
      A pruner for `jp.sparsify`.

    Raises:
      ValueError: the steps, the sparsity or an option are out of range, or no group is left to prune.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"a": jnp.array([[1.0, 3.0]]), "b": jnp.ones((2, 1))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(1))
      >>> tx = jp.sparsify(optax.sgd(0.1), jp.channel_gmp(model, 0.5, begin=0, end=0))
      >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
      >>> jax.tree.map(lambda p: p.tolist(), optax.apply_updates(params, updates))
      {'a': [[0.0, 3.0]], 'b': [[0.0], [1.0]]}

    References:
      Zhu and Gupta 2017, arXiv 1710.01878 (the schedule); Fang et al. 2023, arXiv 2301.12900 (the group norm).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity}; it is the share of indices to prune, in [0, 1).")
    if scope not in ("local", "global"):
        raise ValueError(f"scope={scope!r}; it may be 'local' or 'global'.")
    for what, value, form in (("reduction", reduction, Reduction), ("normalize", normalize, Normalizer)):
        if value not in get_args(form):
            raise ValueError(f"{what}={value!r}; it may be one of {list(get_args(form))}.")
    plan = schedule(begin, end, every)
    ignored = set()
    if ignore is not None:
        flags = jax.tree.leaves(trees.resolve_where(ignore, model.params))
        ignored = {leaf for leaf, flag in enumerate(flags) if flag}
    names = [n for n, group in model.groups.items() if not any(m.leaf in ignored for m in group.members)]
    if not names:
        raise ValueError("no group is left to prune; Model.explain says why axes are frozen, or ignore less.")

    def init(params: PyTree, key: jax.Array | None) -> tuple[PyTree, Any]:
        del key
        positions_in(model, params)
        return jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), params), ()

    def update(masks: PyTree, state: Any, context: Context) -> tuple[PyTree, Any]:
        del masks
        positions = positions_in(model, context.params)
        scored = score(context.params, grads=context.grads, key=context.key, stats=context.stats)
        values = {
            leaf: jnp.abs(x).astype(jnp.float32) ** power
            for leaf, x in zip(positions, jax.tree.leaves(scored), strict=True)
            if trees.is_floating(x)
        }
        scores = reduce_to_groups(model, values, values.keys(), reduction, normalize)
        scores = {name: scores[name] for name in names if name in scores}
        keep = _keep(scores, sparsity * plan(context.step), scope)
        leaves = [
            jnp.broadcast_to(leaf_mask(model, leaf, keep), p.shape)
            for leaf, p in zip(positions, jax.tree.leaves(context.params), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(context.params), leaves), state

    return Pruner(init, plan.is_update, update)


def _keep(scores: dict[str, jax.Array], sparsity: jax.Array, scope: str) -> dict[str, jax.Array]:
    """Which indices stay, by group; traced sparsity, at least one index of each group."""
    if scope == "local":
        return {name: selection.top_k_mask(x, _count(x.size, sparsity)) for name, x in scores.items()}
    best = {name: jnp.arange(x.size) == jnp.argmax(x) for name, x in scores.items()}
    ranked = [jnp.where(best[name], jnp.inf, x) for name, x in scores.items()]
    total = sum(x.size for x in ranked)
    kept = selection.top_k_mask(jnp.concatenate(ranked), jnp.maximum(_count(total, sparsity), len(ranked)))
    cuts = np.cumsum([x.size for x in ranked])[:-1]
    return dict(zip(scores, jnp.split(kept, cuts), strict=True))


def _count(size: int, sparsity: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.round((1 - sparsity) * size).astype(jnp.int32), 1)


def leaf_mask(model: Model, leaf: int, keep: dict[str, jax.Array]) -> jax.Array:
    """The mask of one parameter from the kept indices of groups, which may be traced; broadcastable against it."""
    rank = len(model.leaves[leaf].shape)
    mask = jnp.ones((1,) * rank, bool)
    for name, kept in keep.items():
        for member in model.groups[name].zeroed():
            if member.leaf == leaf:
                # A position may belong to several indices (of an outer product), and goes with any of them.
                gone = jnp.zeros(model.leaves[leaf].shape[member.axis], bool).at[member.index].max(~kept[:, None])
                mask = mask & ~gone.reshape([-1 if axis == member.axis else 1 for axis in range(rank)])
    return mask
