"""Speech for the examples: readers, features, synthetic clips. Made files, unless a test says otherwise."""

import wave
from pathlib import Path

import numpy as np
import pytest

from examples.data import sources, speech
from examples.speech import clips, features, synthesis

SNIPPET = """#Two channels, series of two lengths
@problemName Made
@classLabel true a b
@data
1.0,2.0,3.0:4,5,6:b

-1.5,0:7e-1,8:a
"""


def write_wav(path: Path, samples: np.ndarray, rate: int = features.RATE, width: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(width)
        stream.setframerate(rate)
        stream.writeframes((samples * 32_767).astype("<i2").tobytes())


def tone(hertz: float, seconds: float, rate: int = features.RATE) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def test_ts_files_are_read() -> None:
    series, labels = speech.parse_ts(SNIPPET)
    assert labels == ["b", "a"]
    np.testing.assert_array_equal(series[0], np.array([[1, 4], [2, 5], [3, 6]], np.float32))
    np.testing.assert_array_equal(series[1], np.array([[-1.5, 0.7], [0, 8]], np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@data\n1,2:3:a", r"made\.ts, line 2: channels have \[2, 1\] steps"),
        ("@data\n1,?:3,4:a", r"made\.ts, line 2: could not convert"),
        ("1,2:3,4:a", "no series after a line '@data'"),
    ],
)
def test_ts_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speech.parse_ts(text, "made.ts")


def test_vowels_from_a_folder_are_split_by_speaker_and_standardised(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def content(count: int) -> str:
        lines = []
        for k in range(count):
            rows = rng.normal(3.0, 2.0, (12, 7 + k % 5))
            lines.append(":".join([*(",".join(f"{x:.6f}" for x in row) for row in rows), str(k % 3)]))
        return "@data\n" + "\n".join(lines)

    with pytest.raises(FileNotFoundError, match=r"JapaneseVowels_TRAIN\.ts"):
        speech.japanese_vowels(tmp_path)
    (tmp_path / "JapaneseVowels_TRAIN.ts").write_text(content(30))
    (tmp_path / "JapaneseVowels_TEST.ts").write_text(content(9))
    data = speech.japanese_vowels(tmp_path, validation=4)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 12, 9)
    assert np.bincount(data.validation.labels).tolist() == [4, 4, 4]
    assert data.train.features.shape[1:] == data.test.features.shape[1:] == (11, 12)
    valid = np.arange(11)[None, :] < data.train.lengths[:, None]
    np.testing.assert_allclose(data.train.features[valid].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.features[valid].std(0), 1, atol=1e-5)
    assert not data.train.features[~valid].any()


def test_real_vowels() -> None:
    """What the archive says of itself: 270 and 370 utterances of nine speakers, 7 to 29 steps."""
    try:
        data = speech.japanese_vowels()
    except sources.SourceError as error:
        pytest.skip(f"JapaneseVowels is not here: {error}")
    lengths = np.concatenate([data.train.lengths, data.validation.lengths, data.test.lengths])
    assert len(data.train) + len(data.validation) == 270 and len(data.test) == 370
    assert (lengths.min(), lengths.max(), len(data.classes)) == (7, 29, 9)
    assert np.bincount(data.test.labels).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]


def test_resampling_keeps_a_tone() -> None:
    found = features.resample(tone(440.0, 0.5, 22_050), 22_050)
    assert found.shape == (8_000,)
    np.testing.assert_allclose(found[200:-200], tone(440.0, 0.5)[200:-200], atol=0.02)
    up = features.resample(tone(440.0, 0.5, 8_000), 8_000)
    np.testing.assert_allclose(up[200:-200], tone(440.0, 0.5)[200:-200], atol=0.02)


def test_log_mel_energies_peak_at_the_band_of_a_tone() -> None:
    filters = features.mel_filters(32)
    rng = np.random.default_rng(0)
    for hertz in (300.0, 1_000.0, 4_000.0):
        # Hiss first, so that the mean over the clip, which is taken off, does not take the tone off.
        clip = np.concatenate([0.01 * rng.normal(size=16_000), tone(hertz, 0.2)]).astype(np.float32)
        band = features.log_mel(clip)[-5:].mean(0).argmax()
        assert filters[round(hertz / features.RATE * 512), band] > 0.3
    assert features.log_mel(np.zeros(10, np.float32)).shape == (1, 32)
    assert features.stack_frames(np.arange(14.0).reshape(7, 2), 3).tolist() == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10, 11],
    ]


def test_recordings_of_words(tmp_path: Path) -> None:
    for word, hertz in (("yes", 400.0), ("no", 900.0)):
        for k in range(4):
            write_wav(tmp_path / word / f"{k}.wav", 0.5 * tone(hertz + k, 0.4 + 0.1 * k))
    (tmp_path / "validation_list.txt").write_text("yes/1.wav\nno/1.wav\n")
    with pytest.raises(FileNotFoundError, match=r"testing_list\.txt"):
        speech.speech_commands(tmp_path, ("yes", "no"))
    (tmp_path / "testing_list.txt").write_text("yes/2.wav\nno/3.wav\n")
    data = speech.speech_commands(tmp_path, ("yes", "no"))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [4, 2, 2]
    assert data.test.labels.tolist() == [0, 1] and data.test.lengths.tolist() == [29, 34]
    with pytest.raises(FileNotFoundError, match="no recordings"):
        speech.speech_commands(tmp_path, ("yes", "up"))
    write_wav(tmp_path / "yes" / "0.wav", tone(400.0, 0.5, 8_000), rate=8_000)
    with pytest.raises(ValueError, match="8000 samples a second"):
        speech.speech_commands(tmp_path, ("yes", "no"))


@pytest.mark.parametrize("kind", list(clips.NOISES))
def test_mixtures_have_the_asked_ratio_and_the_truth(kind: str) -> None:
    rng = np.random.default_rng(0)
    size = 120 * 512
    clean = clips.place(0.3 * tone(500.0, 1.0), size)
    noise = clips.NOISES[kind](size, rng)
    mixed, spoken, quiet = clips.mix(clean, noise, 10.0)
    assert mixed.dtype == np.float32 and np.abs(mixed).max() == pytest.approx(0.5)
    # Speech from second 1 to 2; nothing near it counts as noise.
    times = (np.arange(120) + 0.5) * 512 / 16_000
    np.testing.assert_array_equal(spoken, (times > 0.99) & (times < 2.01))
    assert quiet[times < 0.6].all() and quiet[times > 2.5].all() and not quiet[(times > 0.7) & (times < 2.3)].any()
    scale = 0.5 / np.abs(clean + noise * (k := mixed_scale(mixed, clean, noise))).max()
    power = np.square(clean).reshape(-1, 512).mean(1)[spoken].mean() / np.square(k * noise).mean()
    assert 10 * np.log10(power) == pytest.approx(10.0, abs=0.01) and scale > 0


def mixed_scale(mixed: np.ndarray, clean: np.ndarray, noise: np.ndarray) -> float:
    """How loud the noise is against the speech, by least squares."""
    (a, b), *_ = np.linalg.lstsq(np.stack([clean, noise], 1), mixed.astype(float), rcond=None)
    return b / a


def test_without_espeak_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(sources.SourceError, match="apt-get install espeak-ng"):
        synthesis.espeak_version()
    with pytest.raises(sources.SourceError, match="apt-get install espeak-ng"):
        synthesis.speak("one", synthesis.Voice("en-us", 150, 50))


def test_synthetic_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        synthesis.espeak_version()
    except sources.SourceError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("JAXPRUNE_CACHE", str(tmp_path))
    data = speech.digit_sequences((4, 2, 3), (2, 3))
    assert "SYNTHETIC" in data.source
    assert [len(part) for part in (data.train, data.validation, data.test)] == [4, 2, 3]
    counts = (data.train.labels > 0).sum(1)
    assert set(counts) <= {2, 3} and data.train.labels.max() <= 10 and data.train.features.shape[2] == 96
    # Two or three digits take one to two seconds, at 30 ms a step.
    assert data.train.lengths.min() > 20 and data.train.lengths.max() < 90
    monkeypatch.setattr(synthesis, "speak", None)  # the second time it comes from the cache
    again = speech.digit_sequences((4, 2, 3), (2, 3))
    np.testing.assert_array_equal(again.train.features, data.train.features)


def test_no_voice_is_in_two_parts() -> None:
    voices = [voice for part in synthesis.VOICES.values() for voice in part]
    assert len(voices) == len(set(voices))
