"""The report of a run of the pipeline."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxprune.pipeline.examine import Tested
from jaxprune.pipeline.predict import Prediction
from jaxprune.pipeline.prune import Rounds
from jaxprune.pipeline.target import Target
from jaxprune.report import Layer, Report, Trial
from jaxprune.shrinking import Verification
from jaxprune.summary import Summary


def write_report(
    title: str,
    quality: str,
    target: Target,
    met: bool,
    made: Rounds,
    tested: Tested,
    verification: Verification | None,
    prediction: Prediction,
    counts: Summary,
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> Report:
    """Everything that the five steps found, in one object."""
    dense, pruned = tested.quality
    axis = "MACs removed" if target.cuts else "sparsity"
    trials = [Trial("dense", 0.0, 0, tested.quality[dense], _values(tested, dense))]
    if made.removed:
        trials.append(Trial(prediction.best, made.removed, 0, tested.quality[pruned], _values(tested, pruned)))
    gone = f"{made.removed:.1%} of the {'multiply-adds' if target.cuts else 'prunable weights'} removed"
    lost = tested.quality[dense] - tested.quality[pruned]
    change = "is NaN" if math.isnan(lost) else f"{'fell' if lost >= 0 else 'rose'} by {abs(lost):.4g}"
    reached = f"{'Met' if met else 'Not met; the best that was found'}: {gone}, {quality} {change}."
    return Report(
        title,
        quality,
        trials,
        layers=[Layer(row.path, row.weights, row.kept) for row in counts.rows if row.weights],
        costs=tested.costs,
        notes=[*_notes(prediction, verification), *notes],
        settings=settings,
        history=[{**dataclasses.asdict(each), "criterion": prediction.best} for each in made.history],
        axis=axis,
        kinds=dict.fromkeys(tested.robustness, "measured"),
        asked=f"{target.goal} {target.value:g}, {quality} lower by at most {target.max_drop:g}.",
        reached=reached,
    )


def _values(tested: Tested, model: str) -> dict[str, float]:
    """The quality under corruption, by its name."""
    return {name: values[model] for name, values in tested.robustness.items() if not math.isnan(values[model])}


def _notes(prediction: Prediction, verification: Verification | None) -> list[str]:
    ranked = ", ".join(f"{name} {prediction.losses[name]:.4g}" for name in prediction.ranking)
    notes = [
        f"Held-out loss with {prediction.removed:.0%} removed and no training (measured; {prediction.dense:.4g} "
        f"before): {ranked}. {prediction.best} was used."
    ]
    notes += [f"{name} was not tried: {reason}." for name, reason in prediction.skipped.items()]
    if not prediction.beats_random:
        notes.append("No criterion was better than random.")
    if verification is not None:
        notes.append(f"The smaller function against the masked one (measured): {verification}")
    return notes
