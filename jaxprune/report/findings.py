"""What a report says in words: what was asked and reached, and what did not improve, and why."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from jaxprune.measure.figure import Figure
from jaxprune.report.rows import (
    advantage,
    best_at,
    counted,
    dense_name,
    dense_row,
    percent,
    quality_text,
    quality_writer,
    ratio_to,
    sparsities,
    value_text,
)

if TYPE_CHECKING:
    from jaxprune.report.report import Report

# A cost that is still this much of the dense model's has not fallen.
UNCHANGED = 0.98
# Models of which the arrays themselves are smaller, by the name that they have in `Report.costs`.
_CUT = re.compile(r"shr[iu]nk|small|cut|compact|structured|folded|slim", re.IGNORECASE)
_PACKED = re.compile(r"pack|compressed|zip", re.IGNORECASE)

_MASKS_TIME = (
    "Masks do not speed up dense kernels: a zero is stored and multiplied like any other weight. Cutting whole "
    "channels away can (jp.shrink)."
)
_CUT_TIME = (
    "Smaller arrays are not always faster: what each call costs by itself, and the memory traffic of activations, "
    "stay. Which of the two it is here was not measured."
)
_MASKS_BYTES = (
    "Bytes do not change unless a model is packed or shrunk: a dense array holds a zero as it holds any other value, "
    "and a mask adds one byte a weight (one bit, packed)."
)
_CUT_BYTES = "What was not cut, such as activations, temporary buffers and other parameters, outweighs what was."
_PACKED_BYTES = (
    "A packed model stores one bit for every weight beside the values that are left, and that is not less here."
)
_ENERGY = "A dense kernel does the same work for a zero as for any other weight; it draws power for as long."
_MASKS_COUNT = (
    "Dense kernels multiply zeros, too: what they compute falls only when arrays get smaller. A count that leaves "
    "zeros out is theoretical."
)
_CUT_COUNT = "What was cut away is not where the operations are."
_UNLIKE = "The two are not known in the same way, so they are not compared."
_UNKNOWN = "Why was not examined."


def not_improved(report: "Report") -> list[str]:
    """Sentences on every cost that did not fall, every method no better than random pruning, and what is unknown."""
    sentences = [line for name, figures in report.costs.items() for line in _cost(name, figures)]
    sentences += _no_better_than_random(report)
    if not report.costs:
        sentences.append(
            f"Only {report.quality} was measured: nothing is said here about time, memory or energy. Zeros in dense "
            "arrays change none of them by themselves."
        )
    return sentences


def _cost(name: str, figures: Mapping[str, Figure]) -> list[str]:
    """One sentence for each reason, with all models that it holds for."""
    if not figures:
        return []
    first = dense_name(figures)
    dense = figures[first]
    if dense.value is None:
        return [f"{_upper(name)}: not measured ({dense.note}). Nothing is claimed about it."]
    groups: dict[str, list[str]] = {}
    for model, figure in figures.items():
        if model == first:
            continue
        if figure.value is None:
            groups.setdefault("Nothing is claimed about it.", []).append(f"{model} not measured ({figure.note})")
            continue
        ratio = ratio_to(figure, dense)
        if ratio is None:
            alike = (figure.unit, figure.kind) == (dense.unit, dense.kind)
            reason = "There is no ratio of the two." if alike else _UNLIKE
            groups.setdefault(reason, []).append(f"{model} {figure}")
        elif ratio >= UNCHANGED:
            groups.setdefault(_why(name, model, figure), []).append(f"{model} {figure}, {ratio:.2f} x")
        elif dense.value - figure.value <= (dense.spread or 0) + (figure.spread or 0):
            reason = "The difference is smaller than the spread of the measurements."
            groups.setdefault(reason, []).append(f"{model} {figure}, {ratio:.2f} x")
    return [f"{_upper(name)}: {first} {dense}; {'; '.join(models)}. {why}" for why, models in groups.items()]


def _why(name: str, model: str, figure: Figure) -> str:
    cut = bool(_CUT.search(model))
    if figure.unit == "bytes":
        packed = _PACKED.search(f"{name} {model}")
        return _PACKED_BYTES if packed else _CUT_BYTES if cut else _MASKS_BYTES
    if figure.unit == "s":
        return _CUT_TIME if cut else _MASKS_TIME
    if figure.unit in {"J", "W"}:
        return _CUT_TIME if cut else _ENERGY
    if figure.unit in {"FLOPs", "MACs"}:
        return _CUT_COUNT if cut else _MASKS_COUNT
    return _UNKNOWN


def _no_better_than_random(report: "Report") -> list[str]:
    rows = report.rows()
    write = quality_writer(rows)
    sentences = []
    for sparsity in sparsities(rows):
        here = [row for row in rows if row["sparsity"] == sparsity and not row["diverged"] and row["method"] != "dense"]
        random = next((row for row in here if row["method"] == "random"), None)
        if random is None:
            continue
        for row in here:
            lead, spread = advantage(row, random, report.better)
            # "random 2:4" is a control as well.
            if row["method"].partition(" ")[0] != "random" and lead <= spread:
                sentences.append(
                    f"{_upper(row['method'])} at {percent(sparsity)}: {quality_text(row, write)} is no better than "
                    f"random pruning, {quality_text(random, write)}, by more than the spread over seeds."
                )
    return sentences


def asked(report: "Report") -> str:
    """What was asked for, in a sentence: `Report.asked`, or what the trials tell."""
    if report.asked:
        return report.asked
    rows = report.rows()
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "dense"))
    if not methods:
        return "No model was pruned."
    levels = _listed([percent(sparsity) for sparsity in sparsities(rows)])
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    dense = " The dense model was trained beside them." if dense_row(rows) else ""
    return f"{_upper(_listed(methods))} at {levels} {report.axis}, with {counted(len(seeds), 'seed')}.{dense}"


def reached(report: "Report") -> str:
    """What was reached, in a sentence: `Report.reached`, or what was counted in the trials and the layers."""
    if report.reached:
        return report.reached
    sentences = []
    rows = report.rows()
    names = dict.fromkeys(name for row in rows for name in row["values"] if name.startswith("sparsity"))
    for name in list(names)[:1]:
        got = {}
        for sparsity in sparsities(rows):
            found = [r["values"][name] for r in rows if r["sparsity"] == sparsity and name in r["values"]]
            if found:
                ends = dict.fromkeys((value_text(name, min(found)), value_text(name, max(found))))
                got[percent(sparsity)] = " to ".join(ends)
        differ = [f"{ends} where {level} was asked for" for level, ends in got.items() if ends != level]
        if got:
            rest = "as asked for" if len(got) > len(differ) else ""
            rest += " but for " if rest and differ else ""
            sentences.append(f"{_upper(name.replace('_', ' '))}: {rest}{_listed(differ) if differ else ''}.")
    if report.layers:
        kept, weights = (sum(getattr(layer, field) for layer in report.layers) for field in ("kept", "weights"))
        share = percent((weights - kept) / weights)
        sentences.append(
            f"The final model keeps {kept:,} of {weights:,} weights of the layers below; {share} are gone."
        )
    return " ".join(sentences) or "How many weights are gone was not counted."


def headline(report: "Report") -> list[tuple[str, str, str]]:
    """The few figures to see first: label, figure, remark."""
    rows = report.rows()
    write = quality_writer(rows)
    tiles = []
    dense = dense_row(rows)
    if dense:
        tiles.append(("dense", quality_text(dense, write), f"{report.quality}, {counted(len(dense['seeds']), 'seed')}"))
    levels = sparsities(rows)
    best = best_at(rows, levels[-1], report.better) if levels else []
    if best:
        others = f" (and {_listed([row['method'] for row in best[1:]])}, within the spread)" if best[1:] else ""
        remark = f"{best[0]['method']}{others}"
        if dense and not dense["diverged"]:
            remark += f"; {signed(best[0]['mean'] - dense['mean'], write)} against dense"
        tiles.append((f"best at {percent(levels[-1])}", quality_text(best[0], write), remark))
        random = [row for row in rows if row["method"] == "random" and row["sparsity"] == levels[-1]]
        if random and random[0] is not best[0] and not random[0]["diverged"]:
            tiles.append((f"random at {percent(levels[-1])}", quality_text(random[0], write), "the control"))
    falls = [
        (ratio, name, model, figure)
        for name, figures in report.costs.items()
        for model, figure in figures.items()
        if (ratio := ratio_to(figure, figures[dense_name(figures)])) is not None and ratio < UNCHANGED
    ]
    measured = [fall for fall in falls if fall[3].kind == "measured"]
    if falls:
        ratio, name, model, figure = min(measured or falls, key=lambda fall: fall[0])
        tiles.append((f"{name}: {model}", f"{ratio:.2f} x", f"of dense; {figure}"))
    return tiles


def signed(difference: float, write: Callable[[float], str]) -> str:
    """A difference with its sign."""
    return f"{'-' if difference < 0 else '+'}{write(abs(difference))}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
