"""The examples that prune a transformer without training, on a tiny one and a made corpus."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

import jaxprune as jp
from examples import one_shot_transformer, shrink_transformer
from examples.language.training import Config


@dataclass(frozen=True)
class Tiny(Config):
    """Trained in seconds."""

    vocabulary: int = 300
    width: int = 16
    depth: int = 2
    heads: int = 2
    hidden: int = 24
    context: int = 16
    batch_size: int = 2
    evaluation_windows: int = 4


pytestmark = pytest.mark.usefixtures("as_users_run_it")


def test_examples_run_and_write_what_they_found(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_shot_transformer, "Config", Tiny)
    monkeypatch.setattr(shrink_transformer, "Config", Tiny)
    shared = ["--steps", "2", "--samples", "32", "--held-out", "4", "--data-dir", str(corpus)]
    options = [*shared, "--output-dir", str(tmp_path), "--methods", "random", "magnitude", "wanda+refit"]
    options += ["--sparsity", "--seed", "0", "1", "--resume"]

    report = one_shot_transformer.main(options)["language model"]
    rows = {row["method"]: row for row in report.rows()}
    # Magnitude does not look at the data, so it has one run.
    expected = {"dense": [0], "random 2:4": [0, 1], "magnitude 2:4": [0], "wanda+refit 2:4": [0, 1]}
    assert {method: row["seeds"] for method, row in rows.items()} == expected
    dense, *pruned = rows.values()
    assert dense["sparsity"] == 0
    assert all(row["sparsity"] == row["values"]["sparsity_prunable"] == 0.5 for row in pruned)
    assert rows["wanda+refit 2:4"]["values"]["layer_error"] < rows["magnitude 2:4"]["values"]["layer_error"]
    saved = json.loads((tmp_path / "language_model" / "report.json").read_text())
    assert jp.Report.from_dict(saved).trials == report.trials
    assert (tmp_path / "language_model" / "quality.png").stat().st_size > 10_000

    with monkeypatch.context() as patch:  # what has finished is not pruned again
        patch.setattr(one_shot_transformer, "prune", None)
        assert one_shot_transformer.main(options)["language model"].trials == report.trials

    options = [*shared, "--model-dir", str(tmp_path), "--output-dir", str(tmp_path / "small"), "--macs", "0.8"]
    options += ["--methods", "random", "flap + repair", "blocks", "--seed", "0", "--repetitions", "2"]
    dense, *smaller = shrink_transformer.main(options).trials
    assert [trial.method for trial in smaller] == ["random", "flap + repair", "blocks"]
    assert all(trial.values["macs"] <= 0.801 * dense.values["macs"] for trial in smaller)
    assert all(trial.values["weights"] < dense.values["weights"] for trial in smaller)
    assert (tmp_path / "small" / "report.html").exists()
