"""From a target to the fraction that has to go."""

import math
from typing import Any

import jax

from jaxprune import trees
from jaxprune.measure.latency import latency
from jaxprune.pipeline.criteria import Scoring, cut
from jaxprune.pipeline.target import Target
from jaxprune.shrinking import shrink, shrunk_function
from jaxprune.structures import NM, Structure, Unstructured
from jaxprune.trees import PyTree, Where

_PROBES = 5


def fraction_to_remove(target: Target, params: PyTree, structure: Structure, where: Where) -> float:
    r"""The sparsity that a target of `sparsity` or `bytes` needs, or the share of multiply-adds that is to go.

    Stored are the kept weights and one bit a weight for the mask: of $n$ weights of $b$ bytes that may be pruned, in a
    model of $B$ bytes, $s = (B (1 - t) + n / 8) / (n b)$ meets the target $t$.

    Args:
      target: of any goal but latency.
      params: the dense parameters.
      structure: what is pruned together.
      where: which parameters may be pruned.

    Returns:
      The fraction, in (0, 1).

    Raises:
      ValueError: N:M has another sparsity, no sparsity meets a target of bytes, or `structure` or `where` is given for
        a target that cuts.

    Example:
      >>> import numpy as np
      >>> from jaxprune import Unstructured
      >>> fraction_to_remove(Target(bytes=0.5), {"w": np.ones((8, 8), np.float32)}, Unstructured(), None)
      0.53125
    """
    fixed = 1 - structure.n / structure.m if isinstance(structure, NM) else None
    if target.cuts:
        choices = {"where": where, "structure": None if structure == Unstructured() else structure}
        given = [f"{name}={value}" for name, value in choices.items() if value is not None]
        if given:
            raise ValueError(
                f"{' and '.join(given)} beside Target({target.goal}=...), which cuts whole indices, wherever the trace "
                "allows it. Leave it out, or ask for sparsity or bytes."
            )
        return target.removed
    wanted = target.removed if target.goal == "sparsity" else _sparsity_for_bytes(target.value, params, where)
    if fixed is None:
        return wanted
    if (target.goal == "sparsity" and abs(fixed - wanted) > 1e-9) or fixed < wanted:
        raise ValueError(f"{target} cannot be met by {structure}, which has the sparsity {fixed:g}; ask for that one.")
    return fixed


def prunable(tree: PyTree, params: PyTree, where: Where) -> list[Any]:
    """The leaves of a tree like the parameters that belong to parameters which may be pruned.

    Example:
      >>> import numpy as np
      >>> params = {"w": np.ones((2, 2)), "b": np.ones(2)}
      >>> prunable({"w": "w", "b": "b"}, params, None)
      ['w']
    """
    chosen = jax.tree.leaves(trees.resolve_where(where, params))
    return [leaf for leaf, flag in zip(jax.tree.leaves(tree), chosen, strict=True) if flag]


def share_to_cut(scoring: Scoring, params: PyTree, removed: float) -> float:
    """A share of the multiply-adds that can be cut: what is asked for, halved as often as need be.

    Args:
      scoring: what the criterion, here the magnitude, may look at; which share can be cut does not depend on it.
      params: the dense parameters.
      removed: the share to begin with.

    Returns:
      The share.

    Raises:
      ValueError: not even one in a hundred can be cut.
    """
    while True:
        try:
            cut(scoring, "magnitude", params, 1 - removed)
        except ValueError:
            if removed < 0.02:
                raise
            removed /= 2
        else:
            return removed


def _sparsity_for_bytes(share: float, params: PyTree, where: Where) -> float:
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    chosen = prunable(params, params, where)
    mask = sum(math.ceil(leaf.size / 8) for leaf in chosen)
    sparsity = (whole * (1 - share) + mask) / sum(leaf.size * leaf.dtype.itemsize for leaf in chosen)
    if sparsity >= 1:
        raise ValueError(
            f"Target(bytes={share}): even without any of the weights that may be pruned, more is left. "
            "Let `where` choose more parameters, or ask for less."
        )
    return sparsity


def fraction_for_latency(scoring: Scoring, params: PyTree, inputs: Any, share: float) -> tuple[float, float]:
    """The multiply-adds that have to go for a call to take a share of the dense time, measured by bisection.

    Args:
      scoring: what the criterion, here the magnitude, may look at.
      params: the dense parameters.
      inputs: what to call with.
      share: of the dense latency.

    Returns:
      The fraction to remove, and the share of the latency that it gave. Where nothing that was tried is fast enough,
      what came closest.
    """
    dense = jax.jit(scoring.apply_fn)
    low, high = 0.0, 0.95
    tried: list[tuple[float, float]] = []
    for _ in range(_PROBES):
        removed = (low + high) / 2
        try:
            plan = cut(scoring, "magnitude", params, 1 - removed)
        except ValueError:  # less than that cannot be left
            high = removed
            continue
        function, small = jax.jit(shrunk_function(scoring.model, plan)), shrink(scoring.model, plan, params)
        times = latency({"dense": lambda: dense(params, inputs), "small": lambda f=function, p=small: f(p, inputs)})
        ratio = (times["small"].value or 0.0) / (times["dense"].value or 1.0)
        tried.append((removed, ratio))
        low, high = (low, removed) if ratio <= share else (removed, high)
    enough = [each for each in tried if each[1] <= share]
    if not tried:
        raise ValueError(
            f"Target(latency={share}): no index of this model can be removed; see model.explain(path, axis)."
        )
    return min(enough) if enough else min(tried, key=lambda each: each[1])
