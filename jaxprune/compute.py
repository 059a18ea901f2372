"""`compute_masks`: scores, structures and an allocation, put together."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _sharding, trees
from jaxprune import masks as masks_
from jaxprune import scores as scores_
from jaxprune._counts import check_sparsity, is_traced
from jaxprune.allocation import Allocation, Units, explicit, uniform
from jaxprune.scores import Score
from jaxprune.structures import NM, Structure, Unstructured, oriented
from jaxprune.trees import PyTree, Where


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """An exception for the parameters whose whole path matches a regular expression; the first match wins.

    A sparsity that a rule fixes counts towards the whole budget: the other parameters make up for it.

    Attributes:
      pattern: a regular expression over paths.
      sparsity: fixes the sparsity of each such parameter.
      structure: replaces the structure.
      score: replaces the score.

    Example:
      >>> Rule(pattern="embed/.*", sparsity=0.5).pattern
      'embed/.*'
    """

    pattern: str
    sparsity: float | None = None
    structure: Structure | None = None
    score: Score | None = None

    def __post_init__(self):
        trees.compile_pattern(self.pattern)
        if self.sparsity is not None:
            check_sparsity(self.sparsity, f"Rule({self.pattern!r}) sparsity")


def compute_masks(
    params: PyTree,
    sparsity: float | jax.Array | None,
    *,
    score: Score = scores_.magnitude,
    structure: Structure = Unstructured(),
    allocation: Allocation | PyTree = uniform,
    where: Where = None,
    rules: Sequence[Rule] = (),
    grads: PyTree | None = None,
    key: jax.Array | None = None,
    stats: PyTree | None = None,
    progress: jax.Array | None = None,
    among: PyTree | None = None,
) -> PyTree:
    """Masks that keep the most important weights: pure, jittable, with exact counts.

    Inside `jax.shard_map` it sees, and selects within, the shard of each device. Under `jit` it selects over whole
    arrays, however they are sharded.

    Args:
      params: any pytree of parameters.
      sparsity: fraction of zeros over all parameters that `where` chooses, in [0, 1). None where the structure
        (`NM`), the rules or a tree of sparsities says it all.
      score: how important each weight is.
      structure: which weights go together.
      allocation: how the sparsity is shared: `jp.allocation.uniform`, `erk`, `global_`, `global_normalized`, `lamp`,
        or a tree of sparsities.
      where: which parameters may be pruned; by default floating ones with two dimensions or more.
      rules: exceptions by path; one that matches nothing raises.
      grads: gradients, for the scores that need them.
      key: a typed PRNG key, for random scores.
      stats: statistics, for the scores that need them.
      progress: scales every parameter's sparsity, for schedules; may be traced.
      among: earlier masks; what they prune ranks below all else, whatever its score, for pruning in rounds.

    Returns:
      A mask tree: bool arrays shaped like the parameters, the scalar True for parameters that are not pruned.

    Raises:
      ValueError: a sparsity outside [0, 1), one that N:M cannot have, an unmatched `where` or rule, a missing
        input of a score, or a budget that cannot be met.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.array([[1.0, -3.0], [2.0, 0.5]]), "b": jnp.zeros(2)}
      >>> compute_masks(params, 0.5)["w"].tolist()
      [[False, True], [True, False]]
    """
    chosen = jax.tree.leaves(trees.resolve_where(where, params))
    named = trees.leaves_with_paths(params)
    treedef = jax.tree.structure(params)
    picked = [i for i, c in enumerate(chosen) if c]
    matched = match_rules(rules, [named[i][0] for i in picked])
    # A module that holds the sparsities may be callable, as those of Equinox are; a function is one leaf.
    is_tree = jax.tree.structure(allocation) == treedef and not jax.tree_util.treedef_is_leaf(treedef)
    share: Any = explicit(allocation) if is_tree or not callable(allocation) else allocation
    plan = _plan(named, picked, matched, structure, share, params, sparsity, where)

    if among is not None:
        masks_.check_masks_fit(among, params, "among")
    earlier = [None] * len(named) if among is None else jax.tree.leaves(among)

    by_score: dict[Any, list[jax.Array]] = {}
    result: list[jax.Array] = [jnp.asarray(True)] * len(named)
    pooled: list[jax.Array] = []
    for i, rule, (form, _) in zip(picked, matched, plan, strict=True):
        mine = rule.score if rule is not None and rule.score is not None else score
        if id(mine) not in by_score:
            tree = mine(params, grads=grads, key=key, stats=stats)
            trees.check_same_structure(tree, params, "the tree of scores")
            by_score[id(mine)] = jax.tree.leaves(tree)
        leaf_scores = _ranked_last(by_score[id(mine)][i], earlier[i])
        if isinstance(form, NM):
            result[i] = form.select(leaf_scores)
        else:
            pooled.append(form.pool(leaf_scores))

    budgeted = [(i, form, units) for i, (form, units) in zip(picked, plan, strict=True) if units is not None]
    if budgeted:
        units = [u for _, _, u in budgeted]
        if sparsity is None and any(u.sparsity is None for u in units):
            missing = [u.path for u in units if u.sparsity is None]
            raise ValueError(
                f"sparsity=None, but neither a rule nor N:M gives one to {trees.list_paths(missing)}. Give a sparsity, "
                "a last Rule(pattern='.*', sparsity=...), or leave these parameters out with `where`."
            )
        masks = share(pooled, units, 0.0 if sparsity is None else sparsity, progress)
        for (i, form, _), mask in zip(budgeted, masks, strict=True):
            result[i] = _sharding.like(form.expand(mask, named[i][1].shape), named[i][1])
    return jax.tree.unflatten(treedef, result)


def _ranked_last(scores: jax.Array, kept: Any) -> jax.Array:
    """Scores in which what an earlier mask prunes ranks below all else."""
    if kept is None:
        return scores
    if scores.dtype.itemsize == 1:  # 8-bit floats have no infinity
        scores = scores.astype(jnp.float32)
    return jnp.where(kept, scores, jnp.asarray(-jnp.inf, scores.dtype))


def match_rules(rules: Sequence[Rule], paths: Sequence[str]) -> list[Rule | None]:
    """The rule of each path, or None; raises for a rule that is the first match of no path."""
    compiled = [(rule, trees.compile_pattern(rule.pattern)) for rule in rules]
    matched = [next((rule for rule, c in compiled if c.fullmatch(path)), None) for path in paths]
    used = {id(rule) for rule in matched}
    unused = [rule.pattern for rule in rules if id(rule) not in used]
    if unused and paths:
        raise ValueError(
            f"the rules {unused} apply to no parameter: they match none, or an earlier rule matches first. A "
            f"pattern must match a whole path; the pruned paths are: {trees.list_paths(paths)}."
        )
    return matched


def _plan(
    named: Sequence[tuple[str, Any]],
    picked: Sequence[int],
    matched: Sequence[Rule | None],
    structure: Structure,
    allocation: Any,
    params: PyTree,
    sparsity: Any,
    where: Where,
) -> list[tuple[Structure, Units | None]]:
    """Each pruned parameter's structure, and its units; N:M has no units, since its pattern fixes the count."""
    by_path = allocation.by_path(params) if isinstance(allocation, explicit) else {}
    if by_path and sparsity is not None:
        raise ValueError(
            f"sparsity={sparsity} beside a tree of sparsities, which says it all; pass sparsity=None with it."
        )
    if sparsity is not None:
        check_sparsity(sparsity)
    plan: list[tuple[Structure, Units | None]] = []
    for i, rule in zip(picked, matched, strict=True):
        path, leaf = named[i]
        fixed = by_path.get(path)
        form = structure
        if rule is not None:
            fixed = rule.sparsity if rule.sparsity is not None else fixed
            form = rule.structure if rule.structure is not None else structure
        axes = trees.matrix_axes(where, path)
        form = oriented(form, axes)
        if isinstance(form, NM):
            _check_nm(form, path, fixed if fixed is not None else sparsity)
            plan.append((form, None))
            continue
        count = math.prod(jax.eval_shape(form.pool, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)).shape)
        size = math.prod(leaf.shape)
        layout = leaf.shape if axes is None else axes.layout(leaf.shape)
        plan.append((form, Units(path, layout, count, max(round(size / max(count, 1)), 1), fixed)))
    return plan


def _check_nm(form: NM, path: str, sparsity: Any) -> None:
    if sparsity is None or is_traced(sparsity):
        return
    if abs(float(sparsity) - form.sparsity) > 1e-6:
        raise ValueError(
            f"sparsity={sparsity} for {path} under NM({form.n}, {form.m}), whose pattern fixes it at 1 - n/m = "
            f"{form.sparsity}. Pass sparsity={form.sparsity} or None, or take a Rule with another structure."
        )
