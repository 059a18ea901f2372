"""Speech for recurrent networks: JapaneseVowels, synthetic digit sequences, Speech Commands.

- `japanese_vowels`: 640 real utterances of the vowels /ae/ by nine men, as 12 cepstral coefficients every 6.4 ms.
  Who speaks? The files come from the PyPI wheel of aeon (only they are read, nothing is imported).
- `digit_sequences`: SYNTHETIC, spoken by espeak-ng. A model that is trained on it does not carry over to real speech.
- `speech_commands`: 105,829 real recordings of single words, 2.4 GB, from the official address or a folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import track

from examples.data import sources
from examples.speech import features, synthesis

_AEON = "aeon==1.6.0"
_AEON_SHA256 = "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409"
_AEON_FOLDER = "aeon/datasets/data/JapaneseVowels"
_VOWELS_SHIFT_S = 0.0064  # Kudo, Toyama and Shimbo 1999: 10 kHz, frames of 25.6 ms every 6.4 ms
_COMMANDS_URL = "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
_COMMANDS_SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
CORE_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclasses.dataclass(frozen=True)
class Utterances:
    """Utterances in memory, padded with zeros to the longest.

    Attributes:
      features: float32 `(n, steps, channels)`.
      lengths: int32 `(n,)`, valid steps of each.
      labels: int32 `(n,)`, a class each; or `(n, most)`, tokens from 1, padded with 0.
    """

    features: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, chosen: np.ndarray | slice) -> Utterances:
        return Utterances(self.features[chosen], self.lengths[chosen], self.labels[chosen])


@dataclasses.dataclass(frozen=True)
class SpeechData:
    """A speech set in memory.

    Attributes:
      name: of the set.
      source: where it came from, for the report.
      train: to train on.
      validation: to choose settings by; no utterance of it is in `train`.
      test: to report on.
      classes: what the labels mean; of tokens, token k is `classes[k - 1]`.
      frame_shift: seconds of audio from one step to the next.
    """

    name: str
    source: str
    train: Utterances
    validation: Utterances
    test: Utterances
    classes: tuple[str, ...]
    frame_shift: float


def parse_ts(text: str, name: str = "the file") -> tuple[list[np.ndarray], list[str]]:
    """Reads a `.ts` file of the time-series archives: series of several lengths, with a label each.

    A line is `channel:channel:...:label`, a channel is numbers with commas between.

    Args:
      text: what the file holds.
      name: of the file, for messages.

    Returns:
      The series, float32 `(steps, channels)` each, and their labels.

    Raises:
      ValueError: for a file without data, channels of several lengths in one series, or something that is no number.

    Example:
      >>> series, labels = parse_ts("@data\\n1,2,3:4,5,6:b")
      >>> series[0].tolist(), labels
      ([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]], ['b'])
    """
    series: list[np.ndarray] = []
    labels: list[str] = []
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not inside or not line:
            inside = inside or line.lower() == "@data"
            continue
        *channels, label = line.split(":")
        try:
            rows = [[float(value) for value in channel.split(",")] for channel in channels]
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}; numbers with commas between are expected") from error
        if not rows or len({len(row) for row in rows}) != 1:
            raise ValueError(f"{name}, line {number}: channels have {[len(row) for row in rows]} steps; expected alike")
        series.append(np.asarray(rows, np.float32).T)
        labels.append(label.strip())
    if not series:
        raise ValueError(f"{name} holds no series after a line '@data'; a .ts file is expected")
    return series, labels


def pad(series: Sequence[np.ndarray], labels: np.ndarray, steps: int | None = None) -> Utterances:
    """Puts series `(steps, channels)` of several lengths into one array.

    Args:
      series: what to put together; longer ones than `steps` are cut.
      labels: see `Utterances`.
      steps: of the result; by default those of the longest.
    """
    steps = max(map(len, series)) if steps is None else steps
    lengths = np.array([min(len(one), steps) for one in series], np.int32)
    padded = np.zeros((len(series), steps, series[0].shape[1]), np.float32)
    for k, one in enumerate(series):
        padded[k, : lengths[k]] = one[: lengths[k]]
    return Utterances(padded, lengths, np.asarray(labels, np.int32))


def standardise(data: SpeechData) -> SpeechData:
    """Zero mean and unit variance of each channel, over the valid steps of the training utterances."""
    valid = np.arange(data.train.features.shape[1])[None, :] < data.train.lengths[:, None]
    rows = data.train.features[valid]
    mean, deviation = rows.mean(0), rows.std(0) + 1e-6

    def scaled(part: Utterances) -> Utterances:
        valid = np.arange(part.features.shape[1])[None, :, None] < part.lengths[:, None, None]
        return dataclasses.replace(part, features=np.where(valid, (part.features - mean) / deviation, np.float32(0)))

    parts = {name: scaled(getattr(data, name)) for name in ("train", "validation", "test")}
    return dataclasses.replace(data, **parts)


def japanese_vowels(data_dir: Path | None = None, validation: int = 10) -> SpeechData:
    """JapaneseVowels: 270 training and 370 test utterances of nine speakers, 7 to 29 steps long.

    Args:
      data_dir: a folder of yours with `JapaneseVowels_TRAIN.ts` and `JapaneseVowels_TEST.ts`; when given, nothing else
        is tried.
      validation: utterances of each speaker that are taken out of the 30 training ones.

    Raises:
      FileNotFoundError: if `data_dir` does not hold the files.
      ValueError: if they are not what their names say.
      SourceError: if no source works.
    """
    names = [f"JapaneseVowels_{part}.ts" for part in ("TRAIN", "TEST")]
    if data_dir is not None:
        paths, source = [data_dir / name for name in names], str(data_dir)
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"no file {path}; the folder must hold {' and '.join(names)}")
    else:

        def from_wheel() -> list[Path]:
            return [sources.wheel_file(_AEON, _AEON_SHA256, f"{_AEON_FOLDER}/{name}") for name in names]

        paths = sources.first_that_works("JapaneseVowels", [(f"PyPI package {_AEON}", from_wheel)])
        source = f"JapaneseVowels from the PyPI package {_AEON}"
    (train, train_labels), (test, test_labels) = (parse_ts(path.read_text(), path.name) for path in paths)
    classes = tuple(sorted(set(train_labels)))
    steps = max(map(len, [*train, *test]))
    if unknown := set(test_labels) - set(classes):
        raise ValueError(f"{paths[1].name} has labels {sorted(unknown)} that {paths[0].name} lacks")
    whole = pad(train, np.array([classes.index(label) for label in train_labels]), steps)
    held = np.zeros(len(whole), bool)
    for label in range(len(classes)):  # the last ones of each speaker, as they lie in the file
        held[np.flatnonzero(whole.labels == label)[-validation:]] = True
    tested = pad(test, np.array([classes.index(label) for label in test_labels]), steps)
    data = SpeechData("japanese_vowels", source, whole[~held], whole[held], tested, classes, _VOWELS_SHIFT_S)
    return standardise(data)


def digit_sequences(
    sizes: tuple[int, int, int] = (1_200, 150, 300), digits: tuple[int, int] = (3, 5), stack: int = 3
) -> SpeechData:
    """SYNTHETIC sequences of English digits, spoken by espeak-ng, as log-mel energies with their digits as tokens.

    Voices of the three parts are different (see `synthesis.VOICES`); the clips are cached.

    Args:
      sizes: utterances for training, validation and test.
      digits: the fewest and the most in a sequence.
      stack: frames of 10 ms that make one step.

    Raises:
      SourceError: if espeak-ng is missing; the message says how to install it.
    """
    version = synthesis.espeak_version()
    settings = json.dumps([version, sizes, digits, stack, synthesis.VOICES], sort_keys=True)
    name = f"espeak-digits-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.npz"
    path = sources.cache_dir() / name
    if not path.exists():
        arrays: dict[str, np.ndarray] = {}
        for seed, (part, size) in enumerate(zip(synthesis.VOICES, sizes, strict=True)):
            one = _digit_part(part, size, digits, stack, seed)
            arrays |= {f"{part}_{key}": value for key, value in dataclasses.asdict(one).items()}
        scratch = path.with_suffix(".part.npz")
        np.savez_compressed(scratch, allow_pickle=False, **arrays)
        scratch.replace(path)
    with np.load(path) as stored:
        parts = {
            part: Utterances(*(stored[f"{part}_{field.name}"] for field in dataclasses.fields(Utterances)))
            for part in synthesis.VOICES
        }
    shift = stack * features.FRAME_SHIFT_S
    return standardise(
        SpeechData("digits", f"SYNTHETIC speech by espeak-ng {version}", **parts, classes=DIGITS, frame_shift=shift)
    )


def _digit_part(part: str, size: int, digits: tuple[int, int], stack: int, seed: int) -> Utterances:
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, digits[1]), np.int32)
    voices = [synthesis.draw_voice(part, rng) for _ in range(size)]
    for k in range(size):
        count = rng.integers(digits[0], digits[1] + 1)
        labels[k, :count] = rng.integers(1, 11, count)
    texts = [" ".join(DIGITS[token - 1] for token in row if token) for row in labels]
    series: list[np.ndarray] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        spoken = pool.map(synthesis.speak, texts, voices)
        for clip in track(spoken, f"espeak-ng speaks ({part}, synthetic)", total=size, transient=True):
            noise = rng.normal(scale=10 ** rng.uniform(-3.5, -2.2), size=len(clip))
            series.append(features.stack_frames(features.log_mel(clip + noise.astype(np.float32)), stack))
    return pad(series, labels)


def speech_commands(
    data_dir: Path | None = None, words: Sequence[str] = CORE_WORDS, limit: int | None = None, stack: int = 2
) -> SpeechData:
    """Speech Commands v0.02 (Warden 2018, arXiv 1804.03209): one-second recordings of single words, with its own split.

    Args:
      data_dir: the unpacked archive: a folder for each word, `validation_list.txt`, `testing_list.txt`. By default the
        official archive is downloaded, 2.4 GB.
      words: which ones.
      limit: at most this many recordings of each word, for a short try.
      stack: frames of 10 ms that make one step.

    Raises:
      FileNotFoundError: if a word or a list is missing.
      SourceError: if the download fails.
    """
    folder = (
        data_dir
        if data_dir is not None
        else sources.first_that_works("Speech Commands", [("official", _download_commands)])
    )
    listed: dict[str, str] = {}
    for part, file in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"no file {folder / file}; the unpacked archive of Speech Commands is needed")
        listed |= dict.fromkeys((folder / file).read_text().split(), part)
    series: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    labels: dict[str, list[int]] = {part: [] for part in series}
    for label, word in enumerate(track(words, "features of the recordings", transient=True)):
        clips = sorted((folder / word).glob("*.wav"))
        if not clips:
            raise FileNotFoundError(f"no recordings in {folder / word}; the unpacked archive is needed")
        for clip in clips[:limit]:
            part = listed.get(f"{word}/{clip.name}", "train")
            series[part].append(features.stack_frames(features.log_mel(features.read_wav(clip)), stack))
            labels[part].append(label)
    if empty := [part for part, found in series.items() if not found]:
        raise ValueError(f"no recordings for {' and '.join(empty)} among those read; raise the limit")
    steps = max(len(one) for found in series.values() for one in found)
    parts = {part: pad(found, np.array(labels[part]), steps) for part, found in series.items()}
    shift = stack * features.FRAME_SHIFT_S
    return standardise(SpeechData("speech_commands", str(folder), **parts, classes=tuple(words), frame_shift=shift))


def _download_commands() -> Path:
    """Downloads the official archive and unpacks it into the cache."""
    folder = sources.cache_dir() / "speech_commands_v0.02"
    if not folder.is_dir():
        archive = sources.download(_COMMANDS_URL, _COMMANDS_SHA256)
        scratch = folder.with_suffix(".part")
        with tarfile.open(archive) as opened:
            opened.extractall(scratch, filter="data")
        scratch.replace(folder)
    return folder
