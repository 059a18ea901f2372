"""Random programs against their oracles: the masked dense program, its gradient, and the symmetry of each group.

`check(seed)` does all of it for one program. Thousands of programs from the shell:

    python -m tests.zoo.fuzz --programs 5000 --start 0
"""

import argparse
import collections
import dataclasses
import json
import time
import traceback
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from tests.zoo.fuzz_layers import LAYERS
from tests.zoo.fuzz_operations import OPERATIONS
from tests.zoo.fuzz_programs import Program, make
from tests.zoo.swap import QUICK, SwapCheck, distance, exchange, swap_indices

# What rounding may explain: a multiple of the effect of moving each weight by one rounding error.
MARGIN = 128


@dataclasses.dataclass
class Outcome:
    """What was found of one program.

    Attributes:
      seed: the program.
      operations: what it is made of.
      groups: how many groups of each exactness it has.
      faults: each failed check in words.
      noticed: whether a wrong index set was noticed; None where it could not have been.
      skipped: checks that were not made, and why.
    """

    seed: int
    operations: tuple[str, ...]
    groups: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: list[str] = dataclasses.field(default_factory=list)
    noticed: bool | None = None
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def program(seed: int) -> Program:
    """The random program of a seed."""
    return make(seed, {**OPERATIONS, **LAYERS})


def random_plan(model: jp.Model, names: Sequence[str], seed: int) -> jp.Plan:
    """Removes about 40 % of each group, at least one index, never all."""
    keep = {}
    for name in names:
        size = model.groups[name].size
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        gone = random.choice(size, max(1, min(size - 1, round(0.4 * size))), replace=False)
        keep[name] = ~np.isin(np.arange(size), gone)
    return jp.Plan(keep)


def masked(model: jp.Model, plan: jp.Plan, params: Any, consumers_only: bool) -> Any:
    """The parameters with zeros at what the plan removes.

    Args:
      model: the model.
      plan: what is removed.
      params: the parameters.
      consumers_only: whether only the weights that read a group are zeroed, in groups where that suffices.
    """
    leaves = [np.array(leaf) for leaf in jax.tree.leaves(params)]
    for name, keep in plan.keep.items():
        group = model.groups[name]
        for member in group.members:
            if consumers_only and group.consumers_suffice and "in" not in member.roles:
                continue
            at: list[Any] = [slice(None)] * leaves[member.leaf].ndim
            at[member.axis] = member.index[~keep].reshape(-1)
            leaves[member.leaf][tuple(at)] = 0
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


class Checker:
    """The checks of one traced function; also used on models that are not random.

    Args:
      apply_fn: the function.
      params: its parameters.
      args: its arguments.
      seed: for the plans.
    """

    def __init__(self, apply_fn: Any, params: Any, args: Sequence[Any], seed: int):
        # NumPy arrays, so that nothing but the programs is ever compiled.
        self.params, self.args, self.seed = jax.tree.map(np.asarray, params), tuple(args), seed
        self.model = jp.trace(apply_fn, params, *args)
        self._dense = jax.jit(lambda *inputs: jax.tree.leaves(apply_fn(*inputs)), compiler_options=QUICK)
        self._shrunk: dict[tuple[str, ...], Any] = {}

    def dense(self, params: Any) -> list[Any]:
        """The outputs of the function itself."""
        return self._dense(params, *self.args)

    def shrunk(self, plan: jp.Plan, small: Any) -> list[Any]:
        """The outputs of the shrunk function."""
        names = tuple(plan.keep)
        if names not in self._shrunk:
            function = jp.shrunk_function(self.model, plan)
            self._shrunk[names] = jax.jit(lambda *inputs: jax.tree.leaves(function(*inputs)), compiler_options=QUICK)
        return self._shrunk[names](small, *self.args)

    def noise(self, params: Any) -> float:
        """The effect of rounding, as what it does to move each weight by one rounding error."""

        def nudge(leaf: Any) -> Any:
            random = np.random.default_rng(leaf.size)
            return (leaf * (1 + 2e-7 * random.choice([-1, 1], leaf.shape))).astype(leaf.dtype)

        return distance(self.dense(params), self.dense(jax.tree.map(nudge, params))) + 1.2e-7

    def plan(self) -> jp.Plan:
        """A random plan over all groups."""
        return random_plan(self.model, list(self.model.groups), self.seed)

    def removal(self) -> dict[str, float]:
        """The errors, over what rounding allows, of the shrunk function against the masked one."""
        model, groups, errors = self.model, self.model.groups, {}
        exact = [name for name, group in groups.items() if group.exactness != "approximate"]
        read = [name for name, group in groups.items() if group.exactness != "approximate" or group.consumers_suffice]
        for title, names, consumers_only in (
            ("all members zeroed", exact, False),
            ("consumers zeroed", read, True),
        ):
            if names:
                plan = random_plan(model, names, self.seed)
                zeroed = masked(model, plan, self.params, consumers_only)
                found = self.shrunk(plan, jp.shrink(model, plan, self.params))
                errors[title] = distance(self._cut(plan, self.dense(zeroed)), found) / self.noise(zeroed)
        if groups:
            plan = self.plan()
            function, small = jp.shrunk_function(model, plan), jp.shrink(model, plan, self.params)
            shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(function, small, *self.args))]
            expected = [model.sizes(plan.keep).shape(value) for value in model.program.graph.outputs]
            assert shapes == expected, f"all groups cut: shapes {shapes}, not {expected}"
        return errors

    def _cut(self, plan: jp.Plan, outputs: Sequence[Any]) -> list[Any]:
        sizes, result = self.model.sizes(plan.keep), []
        for value, array in zip(self.model.program.graph.outputs, outputs, strict=True):
            for axis, dim in enumerate(self.model.axes.of(value)):
                array = np.compress(sizes.mask(dim), np.asarray(array), axis)
            result.append(array)
        return result

    def gradient(self) -> float | None:
        """The error of the gradient over the small parameters; None where the masked one is not finite."""
        model = self.model
        plan = random_plan(
            model, [n for n, group in model.groups.items() if group.exactness != "approximate"], self.seed
        )
        if not plan.keep:
            return None
        zeroed = masked(model, plan, self.params, False)
        weights = [np.cos(np.arange(np.size(out), dtype=np.float32)).reshape(out.shape) for out in self.dense(zeroed)]

        def loss(function: Any, factors: Any) -> Any:
            def total(params: Any, *args: Any) -> Any:
                return sum(
                    jnp.sum(out * w) for out, w in zip(jax.tree.leaves(function(params, *args)), factors, strict=True)
                )

            return jax.jit(jax.grad(total), compiler_options=QUICK)

        small = jp.shrink(model, plan, self.params)
        found = jax.tree.leaves(loss(jp.shrunk_function(model, plan), self._cut(plan, weights))(small, *self.args))
        slope = loss(model.apply_fn, weights)
        full = jax.tree.map(np.asarray, slope(zeroed, *self.args))
        moved = slope(jax.tree.map(lambda leaf: leaf * leaf.dtype.type(1 + 2e-7), zeroed), *self.args)
        moved = jax.tree.map(np.asarray, moved)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(full)):
            return None
        expected = jax.tree.leaves(jp.shrink(model, plan, full))
        scale = max(float(np.max(np.abs(leaf), initial=0.0)) for leaf in expected) or 1.0
        noise = max(
            float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(*map(jax.tree.leaves, (full, moved)), strict=True)
        )
        gap = max(float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(expected, found, strict=True))
        return gap / (noise + 2e-7 * scale)

    def wrong_indices(self) -> bool | None:
        """Whether a wrong index set for one parameter is noticed; None where no group changes the outputs."""
        model = self.model
        names = [name for name, group in model.groups.items() if group.exactness != "approximate"]
        plan = random_plan(model, names, self.seed)
        dense = self.dense(self.params)
        for name in names:
            keep, group = plan.keep[name], model.groups[name]
            alone = masked(model, jp.Plan({name: keep}), self.params, False)
            threshold = MARGIN * self.noise(alone)
            if distance(dense, self.dense(alone)) < 100 * threshold:
                continue
            small = jax.tree.leaves(jp.shrink(model, plan, self.params))
            wrong = jp.Plan({**plan.keep, name: np.roll(keep, 1)})
            leaf = group.members[self.seed % len(group.members)].leaf
            small[leaf] = jax.tree.leaves(jp.shrink(model, wrong, self.params))[leaf]
            found = self.shrunk(plan, jax.tree.unflatten(jax.tree.structure(self.params), small))
            zeroed = masked(model, plan, self.params, False)
            return distance(self._cut(plan, self.dense(zeroed)), found) > MARGIN * self.noise(zeroed)
        return None

    def swaps(self, outcome: Outcome) -> None:
        """Exchanges two indices of every group in turn."""
        check = SwapCheck(self.model, self.args)
        plain, noise = self.dense(self.params), self.noise(self.params)
        random = np.random.default_rng(self.seed)
        fixed = None
        for name, group in self.model.groups.items():
            i, j = random.choice(group.size, 2, replace=False).tolist()
            if check.breaks_symmetry(group):
                fixed = distance(plain, check.outputs(self.params)) if fixed is None else fixed
                if fixed > MARGIN * noise:
                    outcome.faults.append(f"the traced program differs from the function by {fixed:.1e}")
                error = check.error(self.params, group, i, j)
                outcome.skipped["swap with constants"] += 1
            else:
                swapped = swap_indices(self.model, self.params, group, i, j)
                axes = [self.model.axes.of(value) for value in self.model.program.graph.outputs]
                error = distance(plain, self.dense(swapped), exchange(group, self.model.atoms[name], i, j), axes)
            if error > MARGIN * noise:
                outcome.faults.append(f"swap of {i} and {j} in {name} ({group.exactness}): {error / noise:.0f} x noise")


def check(seed: int, gradients: bool | None = None) -> Outcome:
    """Every check of the program of a seed.

    Args:
      seed: the program.
      gradients: whether to compare gradients too; by default for one in ten.
    """
    made = program(seed)
    outcome = Outcome(seed, made.operations)
    try:
        checker = Checker(made.apply_fn, made.params, made.args, seed)
        outcome.groups.update(group.exactness for group in checker.model.groups.values())
        if not checker.model.groups:
            return outcome
        for title, error in checker.removal().items():
            if not error <= MARGIN:
                outcome.faults.append(f"{title}: {error:.0f} x noise")
        checker.swaps(outcome)
        outcome.noticed = checker.wrong_indices()
        if gradients or (gradients is None and seed % 10 == 0):
            # Nothing differentiates a while loop backwards.
            error = None if "loop" in made.operations else checker.gradient()
            outcome.skipped["gradient"] += error is None
            if error is not None and not error <= MARGIN:
                outcome.faults.append(f"gradient: {error:.0f} x noise")
    except Exception:
        outcome.faults.append(traceback.format_exc(limit=-4))
    return outcome


def summary(outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
    """Counts over programs."""
    groups = sum((outcome.groups for outcome in outcomes), collections.Counter())
    skipped = sum((outcome.skipped for outcome in outcomes), collections.Counter())
    could = [outcome.noticed for outcome in outcomes if outcome.noticed is not None]
    return {
        "programs": len(outcomes),
        "with groups": sum(bool(outcome.groups) for outcome in outcomes),
        "groups": dict(groups),
        "failed": sum(bool(outcome.faults) for outcome in outcomes),
        "wrong indices noticed": f"{sum(could)} of {len(could)}",
        "skipped or special": dict(skipped),
    }


def main() -> None:
    """Checks many programs and prints every fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    options = parser.parse_args()
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    outcomes, began = [], time.perf_counter()
    for seed in range(options.start, options.start + options.programs):
        outcome = check(seed)
        outcomes.append(outcome)
        for fault in outcome.faults:
            print(f"seed {seed} {outcome.operations}: {fault}", flush=True)
        if len(outcomes) % 100 == 0:
            jax.clear_caches()  # no program is compiled twice
            print(json.dumps(summary(outcomes)), f"{time.perf_counter() - began:.0f} s", flush=True)
    print(json.dumps(summary(outcomes)), f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
