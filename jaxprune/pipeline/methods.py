"""Methods by name: what `compare` trains, each for the same number of steps.

A *training* method is a `Pruner`: masks are there from the start, or come and move while the model trains. A
*one-shot* method is a `jp.posttraining` method: it prunes the trained dense model from calibration data, without
further steps.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxprune import allocation, posttraining, pruners, scores
from jaxprune.posttraining import Method
from jaxprune.pruners import Pruner
from jaxprune.structures import NM, Structure, Unstructured
from jaxprune.trees import PyTree, Where


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the methods of one comparison share.

    Attributes:
      sparsity: fraction of zeros of the parameters that `where` chooses; None where N:M fixes it.
      steps: length of the training; schedules are fractions of it, so that masks rest for its last quarter.
      structure: what is pruned together.
      allocation: how the sparsity is shared between layers.
      where: which parameters may be pruned.
      grads: gradients of a batch at the start, for scores that need them.

    Example:
      >>> Settings(0.9, steps=800).window()
      {'begin': 80, 'end': 600, 'every': 20}
    """

    sparsity: float | None
    steps: int
    structure: Structure = Unstructured()
    allocation: Any = allocation.uniform
    where: Where = None
    grads: PyTree | None = None

    def at(self, fraction: float) -> int:
        """The step at a fraction of the training, before the last one even in the shortest."""
        return max(0, min(round(fraction * self.steps), self.steps - 1))

    def window(self, updates: int = 40) -> dict[str, int]:
        """When masks move: between a tenth and three quarters of the training, about every `steps / updates` steps."""
        return {"begin": self.at(0.1), "end": self.at(0.75), "every": max(1, self.steps // updates)}

    def shared(self) -> dict[str, Any]:
        """The arguments that every pruner takes."""
        return {"structure": self.structure, "allocation": self.allocation, "where": self.where}


Make = Callable[[Settings], Pruner | Method]


def _magnitude(s: Settings) -> Pruner:
    half = s.at(0.5)
    return pruners.gmp(s.sparsity, begin=half, end=half, **s.shared())


def _exchange(pruner: Callable[..., Pruner]) -> Make:
    def make(s: Settings) -> Pruner:
        return pruner(s.sparsity, end=s.at(0.75), every=s.window()["every"], **s.shared())

    return make


def _gradual(pruner: Callable[..., Pruner], updates: int = 40) -> Make:
    def make(s: Settings) -> Pruner:
        return pruner(s.sparsity, **s.window(updates), **s.shared())

    return make


def _top_kast(s: Settings) -> Pruner:
    if s.sparsity is None:
        raise ValueError("top_kast cannot take an N:M structure: its backward set is denser. Use sr_ste.")
    backward = max(0.0, 2 * s.sparsity - 1)
    return pruners.top_kast(s.sparsity, backward_sparsity=backward, every=s.window()["every"], **s.shared())


def _refitted(s: Settings) -> Method:
    del s
    return posttraining.repaired(posttraining.wanda(), posttraining.refit())


METHODS: Mapping[str, Make] = {
    "random": lambda s: pruners.static(s.sparsity, score=scores.random, **s.shared()),
    "snip": lambda s: pruners.static(s.sparsity, score=scores.saliency, grads=s.grads, **s.shared()),
    "magnitude": _magnitude,
    "gmp": _gradual(pruners.gmp),
    "set": _exchange(pruners.set_),
    "rigl": _exchange(pruners.rigl),
    "granet": _gradual(pruners.granet),
    "ste": _gradual(pruners.ste),
    "sr_ste": _gradual(pruners.sr_ste),
    "acdc": _gradual(pruners.acdc, updates=10),
    "top_kast": _top_kast,
    "movement": _gradual(pruners.movement),
    "one_shot_magnitude": lambda s: posttraining.magnitude(),
    "wanda": lambda s: posttraining.wanda(),
    "wanda+refit": _refitted,
    "sparsegpt": lambda s: posttraining.sparsegpt(),
    "alps": lambda s: posttraining.alps(),
}
NEEDS_GRADIENTS = frozenset({"snip"})
"""The methods that score with gradients of the untrained model."""

Methods = Sequence[str] | Mapping[str, str | Make]
"""Names, or a method by the name that the table shows: one of `METHODS`, or a function of `Settings`."""


def resolve_methods(methods: Methods) -> dict[str, Make]:
    """The function that makes each method, by its name.

    Args:
      methods: names of `METHODS`; or a mapping from any name to one of them, or to a function of `Settings` that
        returns a `Pruner` or a method of `jp.posttraining`.

    Returns:
      The functions, in their order.

    Raises:
      ValueError: an unknown name, or none.

    Example:
      >>> import jaxprune as jp
      >>> late = lambda s: jp.pruners.gmp(s.sparsity, begin=s.at(0.5), end=s.at(0.9), **s.shared())
      >>> list(resolve_methods({"random": "random", "late GMP": late}))
      ['random', 'late GMP']
    """
    given: dict[str, str | Make] = dict(methods) if isinstance(methods, Mapping) else {name: name for name in methods}
    if isinstance(methods, str) or not given:
        raise ValueError(f"methods={methods!r}: give a sequence of names or a mapping; known: {', '.join(METHODS)}.")
    made: dict[str, Make] = {}
    for name, method in given.items():
        if isinstance(method, str):
            if method not in METHODS:
                raise ValueError(
                    f"unknown method {method!r}; known: {', '.join(METHODS)}. A method of your own is given as "
                    "{name: function of jp.pipeline.Settings}."
                )
            method = METHODS[method]
        if name == "dense":
            raise ValueError("the name 'dense' is kept for the dense model, which is always there; use another.")
        made[name] = method
    return made


def sparsities_of(sparsities: Sequence[float] | None, structure: Structure) -> list[float]:
    """The sparsities of a comparison, or the one that N:M fixes.

    Raises:
      ValueError: a sparsity outside (0, 1), none, or one that the structure does not have.
    """
    if isinstance(structure, NM):
        fixed = 1 - structure.n / structure.m
        if sparsities and any(abs(s - fixed) > 1e-9 for s in sparsities):
            raise ValueError(f"sparsities={list(sparsities)}: {structure} fixes the sparsity at {fixed:g}; omit them.")
        return [fixed]
    if not sparsities:
        raise ValueError("sparsities is empty; give fractions of zeros such as (0.8, 0.95).")
    for s in sparsities:
        if not 0 < s < 1:
            raise ValueError(f"sparsities: {s} is none; fractions of zeros between 0 and 1 are allowed.")
    return list(dict.fromkeys(float(s) for s in sparsities))
