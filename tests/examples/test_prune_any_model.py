"""`examples/prune_any_model.py` on some real data for a few steps: what it finds means nothing, that it ends does."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from examples import prune_any_model
from examples.data import images, ratings, sources


def few_images() -> images.ImageData:
    data = images.load("mnist_5k")
    return dataclasses.replace(data, train_x=data.train_x[::8], train_y=data.train_y[::8])


def few_ratings() -> ratings.RatingData:
    data = ratings.load()
    return dataclasses.replace(data, ratings=data.ratings.at(np.arange(0, len(data.ratings), 8)))


SOURCES = {"cnn": (images, few_images), "factorisation": (ratings, few_ratings)}


@pytest.mark.parametrize("model", list(SOURCES))
def test_a_few_steps(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    module, few = SOURCES[model]
    try:
        data = few()
    except sources.SourceError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(module, "load", lambda *_: data)
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
