r"""The training ledger: FLOPs that each method spends, and how many inferences pay them back.

With $f_D$ the FLOPs of a forward pass of the dense network and $f_S$ those of the sparse one, a training step is a
forward pass and a backward pass of twice its cost (Evci et al. 2020, RigL, arXiv 1911.11134, appendix H). What skips
zeros is theoretical: it assumes hardware that does. On dense kernels every method costs $3 f_D$.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.measure.figure import Figure, Kind
from jaxprune.schedules import Schedule

_ASSUMES = "assumes hardware that skips zeros"
_RIGL = "RigL (arXiv 1911.11134), app. H"
# Of each method: its formula, where that is from, and the FLOPs of a step at (f_S, f_D, steps between exchanges).
_FORMULAS: dict[str, tuple[str, str, Callable[[np.ndarray, float, float], np.ndarray]]] = {
    "dense": ("3 f_D", _RIGL, lambda sparse, dense, every: 3 * dense + 0 * sparse),
    "static": ("3 f_S", _RIGL, lambda sparse, dense, every: 3 * sparse),
    "snip": ("3 f_S", _RIGL, lambda sparse, dense, every: 3 * sparse),
    "set": ("3 f_S", _RIGL, lambda sparse, dense, every: 3 * sparse),
    "gmp": ("mean over t of 3 f_S(s_t)", _RIGL, lambda sparse, dense, every: 3 * sparse),
    "snfs": ("2 f_S + f_D", _RIGL, lambda sparse, dense, every: 2 * sparse + dense),
    "rigl": (
        "(3 f_S dT + 2 f_S + f_D) / (dT + 1)",
        _RIGL,
        lambda sparse, dense, every: (3 * sparse * every + 2 * sparse + dense) / (every + 1),
    ),
    "granet": (
        "mean over t of (3 f_S(s_t) dT + 2 f_S(s_t) + f_D) / (dT + 1)",
        "counted as RigL's app. H does",
        lambda sparse, dense, every: (3 * sparse * every + 2 * sparse + dense) / (every + 1),
    ),
    "ste": ("2 f_S + f_D", "counted as RigL's app. H does", lambda sparse, dense, every: 2 * sparse + dense),
}
METHODS = tuple(_FORMULAS)


def training_flops(
    method: str,
    *,
    dense: float,
    steps: int,
    sparsity: float = 0.0,
    schedule: Schedule | None = None,
    sparse: Callable[[float], float] | None = None,
    every: int | None = None,
) -> Figure:
    r"""The FLOPs that a training by one method takes, if zeros cost nothing.

    Args:
      method: "dense"; "static" (a mask from the start: random, SNIP, GraSP), "snip", "set", "gmp", "snfs", "rigl",
        "granet", or "ste" (dense gradients of weights that are sparse in the forward pass).
      dense: $f_D$, the FLOPs of a forward pass of one step, over its whole batch: twice the MACs.
      steps: training steps.
      sparsity: the target.
      schedule: for "gmp" and "granet", how it is reached; the masks of a step are those of the last update up to it.
      sparse: $f_S$ as a function of the sparsity. Unless given, $f_S = (1 - s) f_D$, which holds where every layer
        that computes has the same sparsity; with others, and for layers left dense, take `model.cost(masks=...)`.
      every: for "rigl" and "granet", $\Delta T$, steps between exchanges of weights.

    Returns:
      Theoretical FLOPs of all steps.

    Raises:
      ValueError: an unknown method, or an argument that is out of range, missing or of no use to the method.

    Example:
      >>> round(training_flops("rigl", dense=100.0, steps=10, sparsity=0.9, every=99).value, 3)
      309.0
      >>> print(training_flops("dense", dense=1e9, steps=1000))
      3.00 T FLOPs (theoretical)

    References:
      Evci et al. 2020, Rigging the Lottery, arXiv 1911.11134, appendix H.
    """
    if method not in _FORMULAS:
        raise ValueError(f"method={method!r} has no formula here; there are {', '.join(METHODS)}.")
    if not 0 <= sparsity < 1 or dense < 0 or steps < 0:
        raise ValueError(
            f"dense={dense}, steps={steps}, sparsity={sparsity}: FLOPs and steps are not negative, and sparsity is at "
            "least 0 and below 1."
        )
    for name, value, users in (("schedule", schedule, {"gmp", "granet"}), ("every", every, {"rigl", "granet"})):
        if (value is not None) != (method in users):
            verb = "needs" if value is None else "has no use for"
            raise ValueError(f"method={method!r} {verb} `{name}`; it belongs to {', '.join(sorted(users))}.")
    if every is not None and every < 1:
        raise ValueError(f"every={every}: at least one step lies between two exchanges of weights.")
    formula, source, step = _FORMULAS[method]
    at = sparse or (lambda share: (1 - share) * dense)
    levels, counts = _levels(0.0 if method == "dense" else sparsity, schedule, steps)
    costs = np.array([at(level) for level in levels], np.float64)
    total = float(np.sum(step(costs, float(dense), float(every or 1)) * counts))
    note = f"{steps} steps" if method == "dense" else f"{steps} steps; {_ASSUMES}"
    return Figure(total, "FLOPs", "theoretical", f"formula: {formula}; {source}", note=note)


def _levels(sparsity: float, schedule: Schedule | None, steps: int) -> tuple[list[float], np.ndarray]:
    """The sparsities that are held, and for how many steps each."""
    if schedule is None:
        return [sparsity], np.array([steps])
    updates = [t for t in range(schedule.begin, schedule.end + 1, schedule.every) if t < steps]
    if schedule.end < steps and schedule.end not in updates:
        updates.append(schedule.end)
    progress = np.asarray(jax.vmap(schedule)(jnp.array(updates, jnp.int32)), np.float64) if updates else np.zeros(0)
    bounds = np.array([0, *updates, steps])
    return [0.0, *(float(sparsity * p) for p in progress)], np.diff(bounds)


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What was spent, phase by phase: pruning costs its own training, and the account must hold it.

    Attributes:
      phases: pairs of name and figure, in order.

    Example:
      >>> ledger = Ledger().add("training", Figure(2.0, "J", "measured", "rapl:package-0"))
      >>> ledger = ledger.add("fine-tuning", Figure(1.0, "J", "measured", "rapl:package-0"))
      >>> print(ledger.total("J"))
      3.00 J (measured)
    """

    phases: tuple[tuple[str, Figure], ...] = ()

    def add(self, name: str, figure: Figure) -> "Ledger":
        """A ledger with one more phase; several figures of one phase (FLOPs, joules, seconds) are added one by one."""
        return Ledger((*self.phases, (name, figure)))

    def total(self, unit: str) -> Figure:
        """The sum of all figures of a unit; not measured as soon as one of them is not.

        Args:
          unit: such as "FLOPs" or "J".

        Returns:
          The sum; theoretical if one of its parts is, else modelled if one is.

        Raises:
          ValueError: nothing of this unit was added.
        """
        chosen = [(name, figure) for name, figure in self.phases if figure.unit == unit]
        if not chosen:
            raise ValueError(
                f"no phase has a figure in {unit!r}; there are {sorted({f.unit for _, f in self.phases})}."
            )
        return _combined(chosen, sum, unit)

    def __str__(self) -> str:
        lines = [f"{name}: {figure.describe()}" for name, figure in self.phases]
        units = dict.fromkeys(figure.unit for _, figure in self.phases)
        return "\n".join([*lines, *(f"total: {self.total(unit)}" for unit in units)])


def saving(dense: Figure, pruned: Figure) -> Figure:
    """How much less one figure is than another; negative where pruning made it worse.

    Args:
      dense: of the dense model.
      pruned: of the pruned model, in the same unit.

    Returns:
      The difference. Its spread, where both have one, is the root of the sum of their squares.

    Raises:
      ValueError: the units differ.

    Example:
      >>> print(saving(Figure(3.0, "J", "measured", "rapl"), Figure(1.0, "J", "measured", "rapl")))
      2.00 J (measured)
    """
    if dense.unit != pruned.unit:
        raise ValueError(f"dense is in {dense.unit!r} and pruned in {pruned.unit!r}; compare figures of one unit.")
    result = _combined([("dense", dense), ("pruned", pruned)], lambda values: values[0] - values[1], dense.unit)
    if result.value is None or dense.spread is None or pruned.spread is None:
        return result
    return dataclasses.replace(result, spread=float(np.hypot(dense.spread, pruned.spread)))


def break_even(extra_cost: Figure | float, saving_per_inference: Figure | float) -> Figure:
    """How many inferences it takes until pruning has paid for itself.

    Args:
      extra_cost: what pruning cost beyond the dense training (scoring, retraining, fine-tuning), in any unit.
      saving_per_inference: what one inference takes less than before, in the same unit; see `saving`.

    Returns:
      Inferences: 0 where there was no extra cost, infinite where nothing is saved. The note says why, and whether the
      saving is larger than its spread.

    Raises:
      ValueError: the units differ.

    Example:
      >>> print(break_even(Figure(600.0, "J", "measured", "rapl"), Figure(0.25, "J", "measured", "rapl")))
      2.40 k inferences (measured)
      >>> print(break_even(600.0, 0.0).note)
      an inference saves nothing, so the extra cost never comes back
    """
    cost, gain = (
        value if isinstance(value, Figure) else Figure(float(value), "", "theoretical", "given")
        for value in (extra_cost, saving_per_inference)
    )
    if cost.unit != gain.unit and isinstance(extra_cost, Figure) and isinstance(saving_per_inference, Figure):
        raise ValueError(f"the cost is in {cost.unit!r} and the saving in {gain.unit!r}; give both in one unit.")
    result = _combined([("extra cost", cost), ("saving", gain)], _inferences, "inferences")
    if result.value is None or cost.value is None or gain.value is None:
        return result
    if cost.value <= 0:
        note = "pruning cost nothing extra"
    elif gain.value <= 0:
        worse = "saves nothing" if gain.value == 0 else "costs more than before"
        note = f"an inference {worse}, so the extra cost never comes back"
    elif gain.spread is not None and gain.spread >= gain.value:
        note = "the saving is within its spread: it may be none"
    else:
        note = ""
    return dataclasses.replace(result, source="extra cost / saving of an inference", note=note)


def _inferences(values: Sequence[float]) -> float:
    cost, gain = values
    if cost <= 0:
        return 0.0
    return cost / gain if gain > 0 else float("inf")


def _combined(parts: Sequence[tuple[str, Figure]], combine: Callable[[list[float]], Any], unit: str) -> Figure:
    """A figure from others; it is known no better than the least known of them."""
    absent = [f"{name}: {figure.note}" for name, figure in parts if figure.value is None]
    if absent:
        return Figure.absent(unit, "; ".join(absent))
    kinds: list[Kind] = ["theoretical", "modelled", "measured"]
    kind = kinds[min(kinds.index(figure.kind) for _, figure in parts)]
    value = float(combine([figure.value for _, figure in parts if figure.value is not None]))
    notes = dict.fromkeys(figure.note for _, figure in parts if figure.note)
    sources = dict.fromkeys(figure.source for _, figure in parts)
    return Figure(value, unit, kind, " + ".join(sources), note="; ".join(notes))
