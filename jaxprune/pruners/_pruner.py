"""What a pruner is, and what most pruners share: the settings that make masks."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import masks as masks_
from jaxprune import scores as scores_
from jaxprune import trees
from jaxprune._counts import is_traced
from jaxprune.allocation import uniform
from jaxprune.compute import Rule, compute_masks, match_rules
from jaxprune.scores import Score
from jaxprune.structures import Structure, Unstructured, oriented
from jaxprune.trees import PyTree, Where

_SCORES_WITHOUT_GRADIENTS = (scores_.magnitude, scores_.random, scores_.lamp)


class Context(NamedTuple):
    """What a pruner sees at a mask update.

    Attributes:
      step: int32 number of the update, from 0.
      params: the parameters, before the step (after it, for a pruner with `after_step`).
      grads: the raw gradients.
      key: a PRNG key of this step's own, or None where `sparsify` was given none.
      stats: the second moment of the inner optimiser, zeros before its first step; None where it has none.
    """

    step: jax.Array
    params: PyTree
    grads: PyTree
    key: jax.Array | None
    stats: PyTree | None


class Pruner(NamedTuple):
    """How masks evolve in training: pure functions, used by `jp.sparsify`.

    Attributes:
      init: `(params, key) -> (masks, state)`. Masks may be in the user's form; `state` is any pytree of arrays.
      is_update: `step -> bool array`, whether masks are updated at a step.
      update: `(masks, state, context) -> (masks, state)`; masks in full shape go in. Runs under `lax.cond`.
      accumulate: `(state, context) -> state`, at every step, before `update`; or None.
      regularize: `(grads, params, masks, state) -> grads`, a term added to the gradients; or None.
      backward: `(masks, state) -> masks`, the weights that learn; None means those of the masks.
      moves: whether masks change after the start; the optimiser's moments of pruned weights are then reset.
      dense_gradients: all weights learn, pruned ones too (straight-through).
      dense_parameters: pruned weights keep their values; the forward pass must use `jp.sparse_params`.
      after_step: masks are made from the parameters after the step instead of before.
      masks_in_state: the state is a second mask tree; it is kept packed.

    Example:
      >>> Pruner(init=lambda params, key: (params, ()), is_update=lambda step: step < 0,
      ...        update=lambda masks, state, context: (masks, state)).moves
      True
    """

    init: Callable[[PyTree, jax.Array | None], tuple[PyTree, Any]]
    is_update: Callable[[jax.Array], jax.Array]
    update: Callable[[PyTree, Any, Context], tuple[PyTree, Any]]
    accumulate: Callable[[Any, Context], Any] | None = None
    regularize: Callable[[PyTree, PyTree, PyTree, Any], PyTree] | None = None
    backward: Callable[[PyTree, Any], PyTree] | None = None
    moves: bool = True
    dense_gradients: bool = False
    dense_parameters: bool = False
    after_step: bool = False
    masks_in_state: bool = False


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """The arguments of `compute_masks` that a pruner keeps for later."""

    sparsity: Any
    score: Score = scores_.magnitude
    structure: Structure = Unstructured()
    allocation: Any = uniform
    where: Where = None
    rules: Sequence[Rule] = ()

    def masks(
        self,
        params: PyTree,
        progress: jax.Array | None = None,
        *,
        grads: PyTree | None = None,
        key: jax.Array | None = None,
        stats: PyTree | None = None,
        among: PyTree | None = None,
    ) -> PyTree:
        """Full-shape masks of the current parameters."""
        made = compute_masks(
            params,
            self.sparsity,
            score=self.score,
            structure=self.structure,
            allocation=self.allocation,
            where=self.where,
            rules=self.rules,
            grads=grads,
            key=key,
            stats=stats,
            progress=progress,
            among=among,
        )
        return masks_.full_masks(made, params)

    def check(self, params: PyTree) -> None:
        """Raises now, at initialisation, what the first mask update would raise many steps later."""
        # Only shapes count here, so no score runs: a real one may need gradients, which there are none of yet.
        rules = tuple(dataclasses.replace(rule, score=None) for rule in self.rules)
        settings = dataclasses.replace(self, score=lambda params, **_: params, rules=rules)
        jax.eval_shape(settings.masks, jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params))

    def at_start(self, params: PyTree, progress: jax.Array | None, key: jax.Array | None) -> PyTree:
        """Masks at initialisation: of the weights, or dense where a score may need gradients."""
        self.check(params)
        used = [self.score, *(rule.score for rule in self.rules if rule.score is not None)]
        if any(score not in _SCORES_WITHOUT_GRADIENTS for score in used):
            return dense_masks(params, self.where)
        return self.masks(params, progress, key=key)

    def from_context(self, context: Context, progress: jax.Array | None = None, among: PyTree | None = None) -> PyTree:
        """Full-shape masks at a mask update."""
        inputs = {"grads": context.grads, "key": context.key, "stats": context.stats}
        return self.masks(context.params, progress, **inputs, among=among)

    def structures(self, params: PyTree) -> list[Structure | None]:
        """The structure of each leaf; None where it is not pruned."""
        chosen = jax.tree.leaves(trees.resolve_where(self.where, params))
        matched = iter(match_rules(self.rules, [p for p, c in zip(trees.paths(params), chosen, strict=True) if c]))
        forms: list[Structure | None] = []
        for path, c in zip(trees.paths(params), chosen, strict=True):
            rule = next(matched) if c else None
            own = (rule.structure if rule is not None else None) or self.structure
            forms.append(oriented(own, trees.matrix_axes(self.where, path)) if c else None)
        return forms


def dense_masks(params: PyTree, where: Where = None) -> PyTree:
    """Masks that keep everything, after a check that `where` matches something."""
    trees.resolve_where(where, params)
    return jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), params)


def check_strength(value: Any, name: str) -> None:
    """Raises where a strength is negative; a traced one, as of `optax.inject_hyperparams`, passes."""
    if not is_traced(value) and value < 0:
        raise ValueError(f"{name}={value}: a strength must not be negative.")


def is_off(strength: Any) -> bool:
    """Whether a strength is known to be zero, so that its term can be left out of the program."""
    return not is_traced(strength) and not strength
