"""The report object: joining seeds, what did not improve, metrics, JSON."""

import dataclasses
import json
import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.measure.figure import Figure
from jaxprune.report import Layer, Report, Trial, environment, findings
from tests.report import fakes


def timed(**seconds: float) -> dict[str, Figure]:
    return {name: Figure(value, "s", "measured", "wall clock") for name, value in seconds.items()}


def with_costs(**costs: dict[str, Figure]) -> Report:
    return Report("t", "accuracy", costs=costs)


@pytest.mark.parametrize(("dense", "pruned"), [(1.0, -0.2), (-1.0, 0.2), (-1.0, -0.2), (0.0, 0.2), (1.0, math.nan)])
def test_what_is_below_nothing_is_no_share(dense: float, pruned: float) -> None:
    """Joules above idle can come out negative; -0.2 of 1 J was told as "-0.20 x"."""
    figures = {name: Figure(value, "J", "measured", "rapl") for name, value in {"dense": dense, "gmp": pruned}.items()}
    report = with_costs(energy=figures)
    assert "There is no ratio of the two." in report.not_improved()[0]
    assert not findings.headline(report)


def test_rows_join_seeds_like_numpy() -> None:
    report = fakes.report()
    for row in report.rows():
        mine = [t.quality for t in report.trials if (t.method, t.sparsity) == (row["method"], row["sparsity"])]
        assert row["seeds"] == [0, 1, 2]
        assert row["mean"] == pytest.approx(np.mean(mine), abs=1e-12)
        assert row["spread"] == pytest.approx(np.std(mine, ddof=1), abs=1e-12)
    assert len(report.rows()) == 17


def test_rows_are_ordered_whatever_the_order_of_the_trials() -> None:
    report = fakes.report()
    dense, rest = report.trials[:3], report.trials[3:]
    random_, others = rest[:12], rest[12:]
    mixed = dataclasses.replace(report, trials=[*random_[::-1], *dense, *others[::-1]])
    keys = [(row["method"], row["sparsity"]) for row in mixed.rows()]
    levels = [0.5, 0.8, 0.9, 0.95]
    assert keys == [("dense", 0.0), *((m, s) for m in ("random", "granet", "rigl", "gmp") for s in levels)]


def test_a_diverged_seed_is_not_left_out() -> None:
    row = Report("t", "q", [Trial("gmp", 0.5, 0, 0.9), Trial("gmp", 0.5, 1, math.nan)]).rows()[0]
    assert math.isnan(row["mean"])
    assert row["spread"] is None
    assert row["diverged"] == 1


def test_values_are_means_over_the_seeds_that_have_them() -> None:
    trials = [Trial("gmp", 0.5, seed, 0.9, values) for seed, values in enumerate([{"a": 1.0}, {"a": 3.0, "b": 5.0}])]
    assert Report("t", "q", trials).rows()[0]["values"] == {"a": 2.0, "b": 5.0}


def test_one_seed_has_no_spread() -> None:
    assert Report("t", "q", [Trial("gmp", 0.5, 0, 0.9)]).rows()[0]["spread"] is None


def test_str_is_the_tables_and_one_bad_method_does_not_cost_the_others_their_decimals() -> None:
    trials = [Trial("dense", 0.0, 0, 24.281), Trial("random", 0.5, 0, 2360.2), Trial("alps", 0.5, 0, 25.104)]
    text = str(Report("A title", "perplexity", trials, better="lower"))
    assert text.startswith("A title\n") and "dense 24.28 over 1 seed ┏" in " ".join(text.split())
    assert "│ alps   │   25.10 │" in text and "│ random │ 2360.20 │" in text and "\x1b" not in text


def test_what_did_not_improve_is_named_with_its_reason() -> None:
    sentences = fakes.report().not_improved()
    assert len(sentences) == 4
    latency, memory, peak, energy = sentences
    assert latency.startswith("Latency of one batch: dense 3.19 ms ± 0.02 (measured); masked 3.21 ms ± 0.03 (measured)")
    assert "Masks do not speed up dense kernels" in latency
    assert "Bytes do not change unless a model is packed or shrunk" in memory
    assert peak.count("(modelled)") == 2
    assert energy == "Energy of one batch: not measured (no RAPL, no NVML). Nothing is claimed about it."
    assert "shrunk 1.42" not in " ".join(sentences)


@pytest.mark.parametrize(("seconds", "flat"), [(0.979, False), (0.98, True), (1.0, True), (1.5, True)])
def test_a_cost_has_fallen_below_098(seconds: float, flat: bool) -> None:
    assert bool(with_costs(latency=timed(dense=1.0, masked=seconds)).not_improved()) is flat


def test_a_fall_within_the_spread_is_no_improvement() -> None:
    dense = Figure(1.0, "s", "measured", "clock", spread=0.06)
    for spread, words in ((0.05, "smaller than the spread"), (0.03, None)):
        figures = {"dense": dense, "masked": Figure(0.9, "s", "measured", "clock", spread=spread)}
        sentences = with_costs(latency=figures).not_improved()
        assert (words in sentences[0]) if words else not sentences


def test_the_reason_depends_on_what_was_done() -> None:
    reason = with_costs(latency=timed(dense=1.0, shrunk=1.0)).not_improved()[0]
    assert "Smaller arrays are not always faster" in reason
    assert "Masks" not in reason


def test_figures_of_different_kinds_are_not_compared() -> None:
    figures = {"dense": Figure(1.0, "J", "measured", "rapl"), "masked": Figure(0.1, "J", "modelled", "codecarbon")}
    report = with_costs(energy=figures)
    assert "not compared" in report.not_improved()[0]
    assert "0.10 x" not in report.html()


def test_what_became_infinite_did_not_fall() -> None:
    """Break-even is never reached by a method that saves nothing."""
    figures = {"dense": Figure(5.0, "s", "theoretical", "f"), "masked": Figure(math.inf, "s", "theoretical", "f")}
    assert "inf x" in with_costs(latency=figures).not_improved()[0]
    figures = {name: Figure(math.inf, "s", "theoretical", "f") for name in ("dense", "masked")}
    assert "no ratio" in with_costs(latency=figures).not_improved()[0]


def test_a_report_without_costs_says_so() -> None:
    assert "nothing is said here about time, memory or energy" in Report("t", "accuracy").not_improved()[0]


@pytest.mark.parametrize(("better", "quality"), [("higher", 0.5), ("lower", 0.9)])
def test_a_method_that_does_not_beat_random_is_named(better: str, quality: float) -> None:
    rest = {"higher": 0.9, "lower": 0.5}[better]
    trials = [Trial("random", 0.9, 0, 0.7), Trial("a", 0.9, 0, quality), Trial("b", 0.9, 0, rest)]
    trials.append(Trial("random 2:4", 0.9, 0, 0.7))  # a control too
    report = Report("t", "q", trials, costs={"latency": timed(dense=1.0, masked=0.5)}, better=better)
    assert [line.split()[0] for line in report.not_improved()] == ["A"]


def test_random_is_not_beaten_within_the_spread() -> None:
    trials = [Trial("random", 0.9, 0, 0.5), Trial("random", 0.9, 1, 0.7), Trial("a", 0.9, 0, 0.65)]
    assert "no better than random" in Report("t", "q", trials, costs={"c": timed(dense=1.0)}).not_improved()[0]


def test_metrics_are_flat_names_and_numbers() -> None:
    report = fakes.report()
    metrics = report.metrics()
    assert all(isinstance(value, float | int) for value in metrics.values())
    row = next(row for row in report.rows() if (row["method"], row["sparsity"]) == ("gmp", 0.9))
    assert metrics["gmp/0.9/accuracy"] == row["mean"]
    assert metrics["gmp/0.9/accuracy_std"] == row["spread"]
    assert metrics["gmp/0.9/kept_weights"] == 7736
    assert metrics["dense/0/accuracy"] == report.rows()[0]["mean"]
    assert metrics["cost/latency_of_one_batch/shrunk/measured"] == 1.42e-3
    assert metrics["layer/head/dense/kernel/sparsity"] == pytest.approx(1 - 35 / 640)
    assert not [name for name in metrics if "energy" in name or " " in name]


def test_json_round_trip_is_exact() -> None:
    for report in (fakes.report(), fakes.hostile()):
        data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        again = Report.from_dict(data)
        assert again.to_dict() == report.to_dict()
        assert again.not_improved() == report.not_improved()
    # NaN is not equal to itself, so only of this one the objects are compared.
    again = Report.from_dict(json.loads(json.dumps(fakes.report().to_dict())))
    assert again.trials == fakes.report().trials
    assert again.costs == fakes.report().costs


def test_settings_become_plain() -> None:
    report = Report("t", "q", settings={"rate": jnp.float32(0.5), "steps": np.int64(3), "f": np.tanh, "none": None})
    settings = report.to_dict()["settings"]
    assert settings == {"rate": 0.5, "steps": 3, "f": str(np.tanh), "none": None}


def test_the_environment_is_kept_not_made_again() -> None:
    report = Report("t", "q", environment={"jax": "0.0.1"})
    assert Report.from_dict(report.to_dict()).environment == {"jax": "0.0.1"}
    assert {"jax", "jaxprune", "python", "devices", "cores"} <= set(environment())
    assert environment()["devices"].startswith("8 x")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Trial("gmp", 1.0, 0, 0.5), "sparsity=1.0"),
        (lambda: Trial("gmp", -0.1, 0, 0.5), "sparsity=-0.1"),
        (lambda: Trial("", 0.5, 0, 0.5), "method"),
        (lambda: Trial("dense", 0.5, 0, 0.5), "dense"),
        (lambda: Layer("a/kernel", 10, 11), "a/kernel"),
        (lambda: Layer("b/kernel", 0, 0), "b/kernel"),
        (lambda: Report("t", "q", [Trial("gmp", 0.5, 0, 0.1)] * 2), "more than once"),
        (lambda: Report("t", "q", better="up"), "better='up'"),
        (lambda: Report("t", "q", kinds={"macs": "guessed"}), "guessed"),
        (lambda: Report.from_dict({"format": 99, "title": "t", "quality": "q"}), "format=99"),
        (lambda: Report.from_dict({"format": 1, "title": "t", "quality": "q", "colour": 1}), "colour"),
    ],
)
def test_mistakes_are_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_importing_the_room_is_light() -> None:
    heavy = ("rich", "matplotlib", "treescope", "flax", "orbax")
    code = f"import sys, jaxprune.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
