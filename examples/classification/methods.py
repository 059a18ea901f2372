"""The methods that `--method` names: each one is an ordinary Optax optimiser.

That is all there is to pruning with jaxprune: `jp.sparsify(inner, pruner)` in place of `inner`. The
training loop does not know which method runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax

import jaxprune as jp

PyTree = Any


@dataclass(frozen=True)
class Plan:
    """What the pruners of one comparison share.

    Attributes:
      steps: length of the training; all schedules are fractions of it.
      structure: which weights are pruned together.
      allocation: how the sparsity is shared between the layers.
      where: a regular expression for the parameters that may be pruned.
    """

    steps: int
    structure: Any
    allocation: Any
    where: str

    def shared(self) -> dict[str, Any]:
        """The arguments that every pruner takes."""
        return {"structure": self.structure, "allocation": self.allocation, "where": self.where}

    def at(self, fraction: float) -> int:
        """The step at a fraction of the training, before the last one even in the shortest."""
        return min(round(fraction * self.steps), self.steps - 1)

    @property
    def every(self) -> int:
        """Steps between mask updates: 40 updates over the training, as far as it is long enough."""
        return max(1, self.steps // 40)


# (sparsity, plan, gradients at the start) -> pruner. Mask changes end at three quarters of the
# training for every method, so that each has the same time to recover.
METHODS: Mapping[str, Callable[[float | None, Plan, PyTree], Any]] = {
    "random": lambda s, p, g: jp.pruners.static(s, score=jp.scores.random, **p.shared()),
    "snip": lambda s, p, g: jp.pruners.static(s, score=jp.scores.saliency, grads=g, **p.shared()),
    "gmp": lambda s, p, g: jp.pruners.gmp(s, begin=p.at(0.1), end=p.at(0.75), every=p.every, **p.shared()),
    "set": lambda s, p, g: jp.pruners.set_(s, every=p.every, end=p.at(0.75), **p.shared()),
    "rigl": lambda s, p, g: jp.pruners.rigl(s, every=p.every, end=p.at(0.75), **p.shared()),
    "granet": lambda s, p, g: jp.pruners.granet(s, begin=p.at(0.1), end=p.at(0.75), every=p.every, **p.shared()),
    "ste": lambda s, p, g: jp.pruners.ste(s, begin=p.at(0.1), end=p.at(0.75), every=p.every, **p.shared()),
    "sr_ste": lambda s, p, g: jp.pruners.sr_ste(s, begin=p.at(0.1), end=p.at(0.75), every=p.every, **p.shared()),
    "acdc": lambda s, p, g: jp.pruners.acdc(
        s, begin=p.at(0.1), end=p.at(0.75), every=max(1, p.steps // 10), **p.shared()
    ),
    "top_kast": lambda s, p, g: jp.pruners.top_kast(
        _target(s), backward_sparsity=max(0.0, 2 * _target(s) - 1), every=p.every, **p.shared()
    ),
    "movement": lambda s, p, g: jp.pruners.movement(s, begin=p.at(0.1), end=p.at(0.75), every=p.every, **p.shared()),
}
NAMES: tuple[str, ...] = ("dense", *METHODS)
NEEDS_GRADIENTS = frozenset({"snip"})


def make_optimizer(
    method: str,
    inner: optax.GradientTransformation,
    sparsity: float | None,
    plan: Plan,
    key: jax.Array,
    gradients: PyTree = None,
) -> optax.GradientTransformation:
    """Wraps an optimiser in a pruner.

    Args:
      method: one of `NAMES`; `dense` returns `inner` itself.
      inner: any Optax optimiser.
      sparsity: target fraction of zeros over the parameters of `plan.where`; `None` where the
        structure fixes it.
      plan: see `Plan`.
      key: for random masks and random growth; it lives in the optimiser state from then on.
      gradients: those of one batch at the start, for the methods in `NEEDS_GRADIENTS`.

    Returns:
      An Optax gradient transformation.
    """
    if method == "dense":
        return inner
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; allowed: {', '.join(NAMES)}")
    return jp.sparsify(inner, METHODS[method](sparsity, plan, gradients), key=key)


def parse_structure(text: str) -> Any:
    """Reads `unstructured`, `nm:2:4`, `block:4x4` or `channel`.

    Raises:
      ValueError: for anything else.
    """
    if text == "unstructured":
        return jp.Unstructured()
    if text == "channel":
        return jp.Channel(axis=-1)
    if match := re.fullmatch(r"nm:(\d+):(\d+)", text):
        return jp.NM(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"block:(\d+)x(\d+)", text):
        return jp.Block((int(match[1]), int(match[2])))
    raise ValueError(
        f"unknown structure {text!r}; allowed: unstructured, nm:N:M (nm:2:4), block:RxC (block:4x4), channel"
    )


def fixed_sparsity(structure: Any) -> float | None:
    """The sparsity that a structure fixes (N:M), or `None`."""
    return 1 - structure.n / structure.m if isinstance(structure, jp.NM) else None


def allocations() -> Mapping[str, Any]:
    """The allocations that `--allocation` names."""
    return {
        "uniform": jp.allocation.uniform,
        "erk": jp.allocation.erk,
        "global": jp.allocation.global_,
        "lamp": jp.allocation.lamp,
    }


def _target(sparsity: float | None) -> float:
    """Top-KAST needs a number; raises for N:M, which it cannot take."""
    if sparsity is None:
        raise ValueError("top_kast cannot take an N:M structure: its backward set is denser")
    return sparsity
