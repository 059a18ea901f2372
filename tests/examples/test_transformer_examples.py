"""The examples that prune a transformer without training, on a tiny one and a made corpus."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

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
    shared += ["--output-dir", str(tmp_path)]

    found = one_shot_transformer.main(
        [*shared, "--task", "language", "--methods", "magnitude", "wanda+refit", "--sparsity", "--seed", "0", "1"]
    )
    rows = found["language model"]
    # Magnitude does not look at the data, so it has one run.
    assert [row["method"] for row in rows] == ["dense", "magnitude", "wanda+refit", "wanda+refit"]
    assert all(abs(row["zeros"] - 0.5) < 0.01 for row in rows[1:])
    assert json.loads((tmp_path / "results.json").read_text())["results"] == found
    assert (tmp_path / "language_model.png").stat().st_size > 10_000

    options = ["--macs", "0.8", "--methods", "flap + repair", "blocks", "--seed", "0", "--repetitions", "2"]
    dense, *smaller = shrink_transformer.main([*shared, *options])
    assert [row["method"] for row in smaller] == ["flap + repair", "blocks"]
    assert all(row["macs"] <= 0.801 * dense["macs"] for row in smaller)
    assert all(row["parameters"] < dense["parameters"] for row in smaller)
