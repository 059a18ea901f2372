"""examples/shrink_cnn.py for a few steps: what it measures is there, and the cut is real."""

import json
from pathlib import Path

import pytest

from examples import shrink_cnn

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def test_cuts_between_phases(tmp_path: Path) -> None:
    flags = "--dataset mnist_5k --steps 20 --width 8 --batch-size 16 --macs 0.5 --cuts 1 --seed 0 --repetitions 2"
    (row,) = shrink_cnn.main([*flags.split(), "--output-dir", str(tmp_path)])
    assert json.loads((tmp_path / "shrink_cnn.json").read_text()) == [row]
    assert len(row["history"]) == 1
    assert row["shrunk"]["macs"] <= 0.5 * row["dense"]["macs"]
    assert row["shrunk"]["parameters"] < row["dense"]["parameters"]
    for name in ("dense", "shrunk"):
        assert 0.05 < row[name]["accuracy"] <= 1
        assert row[name]["seconds"] > 0 and row[name]["ms_batch_1"] > 0
