"""`examples/prune_any_model.py` on real data for a few steps: what it finds means nothing, that it ends does."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples import prune_any_model
from examples.data import images, ratings, sources

LOADERS = {"cnn": lambda: images.load("mnist_5k"), "factorisation": ratings.load}


@pytest.mark.parametrize("model", list(LOADERS))
def test_a_few_steps(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    try:
        LOADERS[model]()
    except sources.SourceError as error:
        pytest.skip(str(error))
    argv = ["--model", model, "--steps", "5", "--max-drop", "5", "--output-dir", str(tmp_path), "--resume"]
    made = prune_any_model.main(argv)[model]
    assert made.met and np.isfinite(made.quality)
    report = json.loads((tmp_path / model / "report.json").read_text())
    assert {trial["quality"] for trial in report["trials"]} == {made.quality, made.dense_quality}
    assert (tmp_path / model / "report.html").stat().st_size > 10_000
    assert (tmp_path / model / "rounds" / "round-0.json").exists()
    assert model in capsys.readouterr().out
    if model == "cnn":
        assert made.params["params"]["conv_1"]["kernel"].shape[-1] < 32


def test_one_target_at_a_time():
    with pytest.raises(SystemExit):
        prune_any_model.parse(["--macs", "0.5", "--bytes", "0.5"])
