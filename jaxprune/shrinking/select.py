"""`select`: the plan that meets a budget and keeps the highest scores."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxprune import trees
from jaxprune.shrinking.group_scores import check_scores
from jaxprune.shrinking.plan import Plan
from jaxprune.tracing import Group, Model
from jaxprune.tracing.axes import Sizes
from jaxprune.tracing.cost import Macs
from jaxprune.trees import Where


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the smaller model may cost, each as a fraction of the full one; all that are given are met.

    Attributes:
      params: parameters.
      macs: multiply-adds of one call.
      bytes: bytes of the parameters.
      latency: whatever `latency_of` gives.
      latency_of: seconds (or any cost that falls as indices go) from the number of kept indices of each group, such as
        a table measured on the device.

    Example:
      >>> Budget(macs=0.5)
      Budget(macs=0.5)
    """

    params: float | None = None
    macs: float | None = None
    bytes: float | None = None
    latency: float | None = None
    latency_of: Callable[[Mapping[str, int]], float] | None = None

    def __post_init__(self) -> None:
        limits = self.limits()
        if not limits:
            raise ValueError("an empty Budget; give params=, macs=, bytes= or latency= as fractions of the full model.")
        for name, fraction in limits.items():
            if not 0 < fraction <= 1:
                raise ValueError(f"Budget({name}={fraction}); it is the fraction that may stay, above 0 and at most 1.")
        if (self.latency is None) != (self.latency_of is None):
            raise ValueError("Budget(latency=) needs latency_of=, which gives the latency of a choice; and reverse.")

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={fraction}' for name, fraction in self.limits().items())})"

    def limits(self) -> dict[str, float]:
        """The fractions that are given."""
        fields = {"params": self.params, "macs": self.macs, "bytes": self.bytes, "latency": self.latency}
        return {name: fraction for name, fraction in fields.items() if fraction is not None}


class _Meter:
    """What a choice costs in the units of a budget."""

    def __init__(self, model: Model, budget: Budget):
        self.model = model
        self.budget = budget
        self._macs = Macs(model) if budget.macs is not None else None
        self.full = self({})

    def __call__(self, keep: Mapping[str, np.ndarray]) -> dict[str, float]:
        sizes = self.model.sizes(keep)
        costs: dict[str, float] = {}
        if self.budget.params is not None:
            costs["params"] = sum(count for count, _ in self._leaves(sizes))
        if self.budget.bytes is not None:
            costs["bytes"] = sum(count * width for count, width in self._leaves(sizes))
        if self._macs is not None:
            costs["macs"] = self._macs(sizes)
        if self.budget.latency_of is not None:
            counts = {name: int(keep[name].sum()) if name in keep else g.size for name, g in self.model.groups.items()}
            costs["latency"] = self.budget.latency_of(counts)
        return costs

    def _leaves(self, sizes: Sizes) -> list[tuple[int, int]]:
        return [
            (math.prod(sizes.size(dim) for dim in self.model.dims_of(k)), leaf.dtype.itemsize)
            for k, leaf in enumerate(self.model.leaves)
            if trees.is_floating(leaf)
        ]

    def shares(self, keep: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The costs as fractions of the full model's."""
        return {name: cost / self.full[name] if self.full[name] else 0.0 for name, cost in self(keep).items()}

    def meets(self, keep: Mapping[str, np.ndarray]) -> bool:
        limits = self.budget.limits()
        return all(share <= limits[name] for name, share in self.shares(keep).items())


def select(
    model: Model,
    scores: Mapping[str, Any],
    target: Budget | float,
    *,
    scope: str | Callable[[Group], str] = "global",
    round_to: int | Mapping[str, int] = 1,
    min_keep: int | float = 1,
    ignore: Where = None,
    ratios: Mapping[str, float] | None = None,
) -> Plan:
    """Keeps the indices of highest score that a budget allows.

    Indices are ranked within each scope; the same share of every scope is removed, as small as the budget allows.

    Args:
      model: the traced model.
      scores: by the id of the group, from `group_scores`.
      target: a `Budget`, or the share of indices to remove, in [0, 1). A share of indices removes more of the weights:
        about 1 - (1 - r)^2.
      scope: `"global"` ranks all indices together, `"local"` each group by itself, `"isomorphic"` groups that play the
        same part together; a callable gives the scope of a group by name.
      round_to: the kept count of a group is rounded up to a multiple of it (the lanes of the hardware); by pattern of
        group ids where it is a mapping.
      min_keep: the least that every group keeps: a count, or a share of it if it is a float.
      ignore: parameters whose groups stay whole, in any form of `where`.
      ratios: the share of indices to remove from some groups, by pattern over group ids; they take no part in the
        ranking.

    Returns:
      The plan.

    Raises:
      ValueError: the budget cannot be met (the smallest reachable cost is named), a pattern matches no group, scores of
        another model, or a value out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.array([[1.0, 3.0, 2.0, 4.0]]), "b": jnp.ones((4, 1))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(1))
      >>> select(model, jp.group_scores(model, params), jp.Budget(macs=0.5)).keep["a:1"].tolist()
      [False, True, False, True]

    References:
      Isomorphic scopes: Fang et al. 2024, arXiv 2407.04616.
    """
    if not model.groups:
        raise ValueError("the model has no group from which anything could be removed; Model.explain says why.")
    arrays = check_scores(model, scores)
    floors, multiples = _floors(model, min_keep), _multiples(model, round_to)
    fixed = _by_pattern(model, {} if ratios is None else ratios, "ratios", None)
    for name, ratio in fixed.items():
        if ratio is not None and not 0 <= ratio < 1:
            raise ValueError(f"ratios gives {ratio} for group {name!r}; it is the share to remove, in [0, 1).")
    whole = _ignored(model, ignore)
    fixed = {name: ratio for name, ratio in fixed.items() if ratio is not None and name not in whole}

    def count(name: str, wanted: int) -> int:
        size, multiple = model.groups[name].size, multiples[name]
        wanted = max(wanted, floors[name], 1)
        return min(-(-wanted // multiple) * multiple, size)

    def best(name: str, wanted: int) -> np.ndarray:
        order = np.argsort(-arrays[name], kind="stable")[: count(name, wanted)]
        return np.isin(np.arange(model.groups[name].size), order)

    settled = {name: best(name, round((1 - r) * model.groups[name].size)) for name, r in fixed.items()}
    ranked = [name for name in model.groups if name not in whole and name not in settled]
    order = _ranking(model, arrays, ranked, scope)

    def plan(removed: int) -> dict[str, np.ndarray]:
        gone = dict.fromkeys(ranked, 0)
        for _, name in order[:removed]:
            gone[name] += 1
        chosen = {name: best(name, model.groups[name].size - gone[name]) for name in ranked}
        return {name: mask for name, mask in {**settled, **chosen}.items() if not mask.all()}

    if not isinstance(target, Budget):
        if not 0 <= target < 1:
            raise ValueError(f"target={target}; it is the share of indices to remove, in [0, 1), or a Budget.")
        return Plan(plan(sum(share <= target for share, _ in order)), model.fingerprint)
    meter = _Meter(model, target)
    if not meter.meets(plan(len(order))):
        # Rounded up, so that the number that is named can be met.
        reached = {name: math.ceil(share * 1e4) / 1e4 for name, share in meter.shares(plan(len(order))).items()}
        raise ValueError(
            f"{target!r} cannot be met: with all removed that may be, {reached} of the full model stays. Raise the "
            "budget, lower min_keep or round_to, ignore less, or see Model.explain for what is frozen."
        )
    low, high = 0, len(order)  # plan(high) meets the budget; costs fall as more is removed
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meter.meets(plan(middle)) else (middle + 1, high)
    return Plan(plan(high), model.fingerprint)


def _ranking(
    model: Model, scores: Mapping[str, np.ndarray], names: list[str], scope: str | Callable[[Group], str]
) -> list[tuple[float, str]]:
    """The groups in the order in which they lose an index, and the share of its scope that is lost half-way through it.

    So every scope loses the same share at any point, to the nearest index.
    """
    if isinstance(scope, str) and scope not in ("global", "local", "isomorphic"):
        raise ValueError(f"scope={scope!r}; it may be 'global', 'local', 'isomorphic' or a callable (group) -> name.")
    named = {"global": lambda _: "", "local": lambda group: group.id, "isomorphic": lambda group: group.operations}
    of: Callable[[Group], str] = named[scope] if isinstance(scope, str) else scope
    pools: dict[str, list[tuple[float, str]]] = {}
    for name in names:
        pool = pools.setdefault(of(model.groups[name]), [])
        pool.extend((float(score), name) for score in np.sort(scores[name]))
    queue: list[tuple[float, int, str]] = []
    for position, pool in enumerate(pools.values()):
        pool.sort(key=lambda entry: entry[0])
        queue.extend(((rank + 0.5) / len(pool), position, name) for rank, (_, name) in enumerate(pool))
    return [(share, name) for share, _, name in sorted(queue, key=lambda entry: entry[:2])]


def _floors(model: Model, min_keep: int | float) -> dict[str, int]:
    valid = min_keep >= 1 if isinstance(min_keep, int) else 0 <= min_keep <= 1
    if not valid:
        raise ValueError(f"min_keep={min_keep}; give a count of at least 1, or a share of each group in [0, 1].")
    return {
        name: min(min_keep if isinstance(min_keep, int) else math.ceil(min_keep * group.size), group.size)
        for name, group in model.groups.items()
    }


def _multiples(model: Model, round_to: int | Mapping[str, int]) -> dict[str, int]:
    patterns = round_to if isinstance(round_to, Mapping) else {".*": round_to}
    for multiple in patterns.values():
        if not isinstance(multiple, int) or multiple < 1:
            raise ValueError(f"round_to={round_to}; give an integer of at least 1, or a mapping from pattern to one.")
    return _by_pattern(model, patterns, "round_to", 1)


def _by_pattern(model: Model, given: Mapping[str, Any], what: str, default: Any) -> dict[str, Any]:
    """A value for each group, by pattern over the ids, of which the first that matches counts."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{what}={given}; give a mapping from a pattern over the ids of groups to a value.")
    compiled = {pattern: trees.compile_pattern(pattern) for pattern in given}
    for pattern, expression in compiled.items():
        if not any(expression.fullmatch(name) for name in model.groups):
            raise ValueError(
                f"{what} has the pattern {pattern!r}, which matches no whole id of a group; they are "
                f"{trees.list_paths(list(model.groups))}."
            )
    return {
        name: next((given[p] for p, expression in compiled.items() if expression.fullmatch(name)), default)
        for name in model.groups
    }


def _ignored(model: Model, ignore: Where) -> set[str]:
    if ignore is None:
        return set()
    flags = trees.resolve_where(ignore, model.params)
    leaves = {k for k, flag in enumerate(jax.tree.leaves(flags)) if flag}
    return {name for name, group in model.groups.items() if any(member.leaf in leaves for member in group.members)}
