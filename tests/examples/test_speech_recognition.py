"""examples/speech_recognition.py from end to end on made data, for a few steps."""

from pathlib import Path

import numpy as np
import optax
import pytest

import jaxprune as jp
from examples import speech_recognition
from examples.data.speech import SpeechData, Utterances
from examples.models import silero
from examples.speech import clips, hidden_units, vad
from examples.speech.tasks import Recipe
from tests.examples.test_speech_models import random_silero

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def made_data(tokens: bool) -> SpeechData:
    """Class k is a high channel k; a sequence of tokens is one channel after the other."""
    rng = np.random.default_rng(0)

    def part(size: int) -> Utterances:
        labels = rng.integers(1, 4, (size, 2)) if tokens else rng.integers(0, 3, size)
        features = 0.1 * rng.normal(size=(size, 6, 3))
        for k in range(size):
            if tokens:
                features[k, [1, 4], labels[k] - 1] = 2
            else:
                features[k, :, labels[k]] = 2
        return Utterances(features.astype(np.float32), np.full(size, 6, np.int32), labels.astype(np.int32))

    return SpeechData("made", "made", part(24), part(8), part(8), ("a", "b", "c"), 0.01)


def test_vowels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speech_recognition.RECIPES, "vowels", Recipe(4, 4, 1e-2, (6,)))
    monkeypatch.setitem(speech_recognition.HIDDEN, "vowels", Recipe(4, 4, 1e-2, (8,)))
    monkeypatch.setattr(speech_recognition, "load", lambda task, data_dir: made_data(False))
    flags = "--task vowels --cell gru --methods snip --sparsity 0.8 --seed 0 --hidden 0.5 --criteria magnitude"
    flags += f" --fine-steps 2 --repetitions 2 --output-dir {tmp_path}"
    reports = speech_recognition.main(flags.split())
    weights, hidden = reports["vowels-gru-weights"], reports["vowels-gru-hidden"]
    assert [trial.method for trial in weights.trials] == ["dense", "snip"]
    assert weights.trials[1].values["sparsity_prunable"] == pytest.approx(0.8, abs=0.01)
    dense, small = hidden.trials
    assert small.method == "magnitude" and small.values["MACs"] <= 0.5 * dense.values["MACs"]
    assert small.values["hidden units"] < dense.values["hidden units"] == 8
    costs = hidden.costs["real-time factor"]
    assert {figure.kind for figure in costs.values()} == {"measured"} and len(costs) == 2
    # Six steps of 10 ms in one call.
    times = hidden.costs["latency, one utterance"]["dense"].value
    assert times is not None and costs["dense"].value == pytest.approx(times / 0.06)
    for key, report in reports.items():
        assert jp.Report.from_dict(report.to_dict()).trials == report.trials
        assert (tmp_path / key / "report.html").stat().st_size > 1_000

    # Nothing is trained a second time: a training would initialise its optimiser.
    def never(*arguments: object) -> None:
        raise AssertionError("a finished trial ran again")

    never_optimizer = optax.GradientTransformation(never, never)
    monkeypatch.setattr(Recipe, "optimizer", lambda *arguments: never_optimizer)
    monkeypatch.setattr(hidden_units, "_costs", lambda *arguments: {})
    again = speech_recognition.main([*flags.split(), "--resume"])
    assert [report.trials for report in again.values()] == [report.trials for report in reports.values()]


def test_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speech_recognition.RECIPES, "digits", Recipe(3, 4, 1e-2, (6,)))
    monkeypatch.setattr(speech_recognition, "load", lambda task, data_dir: made_data(True))
    flags = "--task digits --cell lstm --methods random --sparsity 0.8 --seed 0 --hidden"
    report = speech_recognition.main([*flags.split(), "--output-dir", str(tmp_path)])["digits-lstm-weights"]
    assert [trial.method for trial in report.trials] == ["dense", "random"]
    assert all(trial.quality <= 1 for trial in report.trials) and any("SYNTHETIC" in note for note in report.notes)


def test_vad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made_clips(part: clips.Part, count: int, seed: int, seconds: float = 0.0) -> clips.Clips:
        rng = np.random.default_rng(seed)
        audio = rng.normal(scale=0.2, size=(count, 4 * silero.CHUNK)).astype(np.float32)
        speech = np.tile([True, True, False, False], (count, 1))
        return clips.Clips(audio, speech, ~speech)

    monkeypatch.setattr(vad, "make_clips", made_clips)
    monkeypatch.setattr(silero, "load_silero", lambda path: silero.params_from_torch(random_silero()))
    flags = "--task vad --vad-methods random wanda --sparsity 0.5 --seed 0 --clips 2 --repetitions 2"
    flags += f" --output-dir {tmp_path}"
    report = speech_recognition.main(flags.split())["vad"]
    dense, random, wanda = report.trials
    assert (dense.values["mean absolute change"], random.method, wanda.method) == (0.0, "random", "wanda")
    assert 0 < wanda.values["mean absolute change"] < random.values["mean absolute change"]
    assert any("SYNTHETIC" in note for note in report.notes)


def test_a_task_without_its_data_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("JAXPRUNE_CACHE", str(tmp_path))
    assert speech_recognition.main(["--task", "digits", "--output-dir", str(tmp_path)]) == {}
    assert "digits was left out: espeak-ng" in " ".join(capsys.readouterr().out.split())
