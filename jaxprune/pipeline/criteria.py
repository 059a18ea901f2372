"""Criteria by name: what a round of the pipeline takes away, random as the control among them.

A criterion for *weights* gives masks, and maybe repaired weights; one for *cuts* gives the score of every index of
every group, from which `jp.select` makes a plan. Both go on from a model that is already
pruned: what is gone stays gone.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import allocation, posttraining, scores
from jaxprune import masks as masks_
from jaxprune.compute import compute_masks
from jaxprune.pipeline.batches import Apply, Batch, Loss
from jaxprune.posttraining.one_shot import prune_one_shot
from jaxprune.shrinking import Budget, Plan, geometric_median_scores, group_scores, select
from jaxprune.structures import NM, Structure, Unstructured
from jaxprune.tracing.model import Model
from jaxprune.trees import PyTree, Where


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What criteria may look at.

    Attributes:
      apply_fn: `(params, inputs) -> outputs`.
      loss_fn: `(outputs, targets) -> scalar`.
      model: the trace.
      batches: for gradients and statistics.
      structure: what is pruned together.
      where: which parameters may be pruned.
      key: of random scores; the same in every round, so that what is gone stays gone.
      sensitivity: sparsities by parameter that a sensitivity scan asks for, `share -> allocation`; or None.
      round_to: where indices are cut, how many a group keeps is rounded up to a multiple of this; see `jp.select`.
    """

    apply_fn: Apply
    loss_fn: Loss
    model: Model
    batches: Sequence[Batch]
    structure: Structure = Unstructured()
    where: Where = None
    key: jax.Array | None = None
    sensitivity: Callable[[float], Any] | None = None
    round_to: int | Mapping[str, int] = 1

    @functools.cached_property
    def _gradient(self) -> Callable[..., PyTree]:
        def loss_of(params: PyTree, inputs: Any, targets: Any) -> jax.Array:
            return self.loss_fn(self.apply_fn(params, inputs), targets)

        return jax.jit(jax.grad(loss_of))

    def gradients(self, params: PyTree) -> PyTree:
        """The mean gradient over the batches."""
        total = None
        for inputs, targets in self.batches:
            grads = self._gradient(params, inputs, targets)
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        return jax.tree.map(lambda g: g / jnp.asarray(len(self.batches), g.dtype), total)

    def sparsity(self, share: float) -> float | None:
        """The sparsity to ask for; None where N:M fixes it."""
        return None if isinstance(self.structure, NM) else share


Selection = Callable[[Scoring, PyTree, float], tuple[PyTree, PyTree]]


def _by_score(score: Any, share_out: Any = allocation.uniform, gradients: bool = False) -> Selection:
    def criterion(scoring: Scoring, params: PyTree, share: float) -> tuple[PyTree, PyTree]:
        masks = compute_masks(
            params,
            scoring.sparsity(share),
            score=score,
            structure=scoring.structure,
            allocation=share_out,
            where=scoring.where,
            grads=scoring.gradients(params) if gradients else None,
            key=scoring.key,
        )
        return masks_.apply_masks(params, masks), masks

    return criterion


def _sensitivity(scoring: Scoring, params: PyTree, share: float) -> tuple[PyTree, PyTree]:
    if scoring.sensitivity is None:
        raise ValueError("the criterion 'sensitivity' needs a scan: run `preprocess` with scan=True.")
    masks = compute_masks(
        params, None, structure=scoring.structure, allocation=scoring.sensitivity(share), where=scoring.where
    )
    return masks_.apply_masks(params, masks), masks


def _from_data(make: Callable[[], Any]) -> Selection:
    def criterion(scoring: Scoring, params: PyTree, share: float) -> tuple[PyTree, PyTree]:
        pruned = prune_one_shot(
            scoring.apply_fn,
            params,
            [(inputs,) for inputs, _ in scoring.batches],
            make(),
            sparsity=scoring.sparsity(share),
            structure=scoring.structure,
            where=scoring.where,
        )
        return pruned.params, pruned.masks

    return criterion


WEIGHTS: Mapping[str, Selection] = {
    "random": _by_score(scores.random),
    "magnitude": _by_score(scores.magnitude),
    "magnitude_global": _by_score(scores.magnitude, allocation.global_),
    "lamp": _by_score(scores.lamp, allocation.global_),
    "taylor": _by_score(scores.taylor, gradients=True),
    "taylor_global": _by_score(scores.taylor, allocation.global_, gradients=True),
    "sensitivity": _sensitivity,
    "wanda": _from_data(posttraining.wanda),
    "sparsegpt": _from_data(posttraining.sparsegpt),
}
_GLOBAL = frozenset({"magnitude_global", "lamp", "taylor_global", "sensitivity"})
_FROM_DATA = frozenset({"wanda", "sparsegpt"})


GroupScores = Callable[[Scoring, PyTree], Mapping[str, Any]]
CUTS: Mapping[str, GroupScores] = {
    "random": lambda s, params: group_scores(s.model, params, scores.random, key=s.key),
    "magnitude": lambda s, params: group_scores(s.model, params, scores.magnitude, power=2.0),
    "taylor": lambda s, params: group_scores(s.model, params, scores.taylor, grads=s.gradients(params)),
    "geometric_median": lambda s, params: geometric_median_scores(s.model, params),
}


def cut(scoring: Scoring, name: str, params: PyTree, macs: float, before: Plan | None = None) -> Plan:
    """The plan of a criterion at a share of the multiply-adds; what `before` has removed goes first.

    Args:
      scoring: what the criterion may look at.
      name: one of `CUTS`.
      params: the parameters, maybe with zeros where `before` has removed.
      macs: multiply-adds that may be left, as a fraction of the dense model's.
      before: the plan of an earlier round.

    Returns:
      The plan, for the dense model.

    Raises:
      ValueError: the budget cannot be met.
    """
    ranked = {}
    for group, score in CUTS[name](scoring, params).items():
        values = np.asarray(score, np.float64)
        gone = None if before is None else before.keep.get(group)
        if gone is not None:
            values = np.where(np.asarray(gone), values, values.min() - 1 - abs(values.min()))
        ranked[group] = values
    return select(scoring.model, ranked, Budget(macs=macs), round_to=scoring.round_to)


def criteria_for(scoring: Scoring, methods: str | Sequence[str], cuts: bool) -> dict[str, str]:
    """Which criteria a model admits.

    Args:
      scoring: what they may look at.
      methods: `"auto"` for all that are possible, or names.
      cuts: whether whole indices are cut.

    Returns:
      By the name of each criterion that was asked for: why it cannot be used, or an empty string.

    Raises:
      ValueError: an unknown name, or none that can be used.
    """
    known = CUTS if cuts else WEIGHTS
    names = list(known) if methods == "auto" else [methods] if isinstance(methods, str) else list(methods)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown criterion {name!r}; for this target there are: {', '.join(known)}, or 'auto'.")
    reasons = {name: "" if cuts else _obstacle(scoring, name) for name in names}
    if all(reasons.values()):
        raise ValueError(f"no criterion can be used: {'; '.join(f'{n}: {r}' for n, r in reasons.items())}.")
    return reasons


def _obstacle(scoring: Scoring, name: str) -> str:
    """Why a criterion for weights cannot be used here, or an empty string."""
    if name in _GLOBAL and isinstance(scoring.structure, NM):
        return f"{scoring.structure} fixes the sparsity of every parameter"
    if name == "sensitivity" and scoring.sensitivity is None:
        return "no sensitivity scan was made"
    if name in _FROM_DATA and (missing := scoring.model.coverage(scoring.where).missing):
        path, reason = next(iter(missing.items()))
        return f"{len(missing)} parameters are multiplied with no data, such as {path}: {reason}"
    return ""
