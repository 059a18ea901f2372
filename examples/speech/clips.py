"""Clips for voice activity detection: SYNTHETIC speech by espeak-ng in made noise, with the truth for every chunk.

No real recording is among them. Voices and sentences of calibration clips are never those of test clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from examples.models.silero import CHUNK, RATE
from examples.speech import synthesis

_SENTENCES: Mapping[str, tuple[str, ...]] = {
    "train": (
        "The train to the north leaves at half past nine.",
        "She put the old letters back into the drawer.",
        "Most of the harbour was still covered with ice.",
        "Please bring two chairs and a table into the garden.",
        "Nobody had told him that the bridge was closed.",
        "A small dog ran across the empty square.",
        "They paint the fence again every second summer.",
        "My brother collects maps of places he has never seen.",
    ),
    "test": (
        "The baker opens his shop before the sun rises.",
        "Heavy rain kept the children inside all afternoon.",
        "We could hear music from the other side of the lake.",
        "The teacher wrote a long sum on the board.",
        "It takes four hours to walk around the island.",
        "His coat was too thin for such a cold evening.",
        "There is fresh bread and cheese in the kitchen.",
        "Two birds were building a nest above the door.",
    ),
}
Part = Literal["train", "test"]
_LEAD_S = 1.0  # of noise before the speech, and at least as much after it
# The network holds on to speech for a while, so chunks within this time of it are no fair example of noise.
_MARGIN_S = 0.35
_SPEECH_DB = -30.0  # a chunk of clean speech this far below the loudest one is a pause


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips of one length.

    Attributes:
      audio: float32 `(clips, samples)` at 16 kHz.
      speech: bool `(clips, chunks)`: someone speaks throughout this chunk.
      noise: bool `(clips, chunks)`: no one speaks in it or near it. Chunks of neither are not judged.
    """

    audio: np.ndarray
    speech: np.ndarray
    noise: np.ndarray


def white(size: int, rng: np.random.Generator) -> np.ndarray:
    """The same power at all frequencies."""
    return rng.normal(size=size)


def _coloured(exponent: float) -> Callable[[int, np.random.Generator], np.ndarray]:
    """Noise whose power falls as frequency to the `exponent`."""

    def make(size: int, rng: np.random.Generator) -> np.ndarray:
        frequencies = np.maximum(np.fft.rfftfreq(size, 1 / RATE), 20.0)
        return np.fft.irfft(np.fft.rfft(rng.normal(size=size)) / frequencies ** (exponent / 2), size)

    return make


def hum(size: int, rng: np.random.Generator) -> np.ndarray:
    """The mains: 50 or 60 Hz with overtones, and a little hiss."""
    time, base = np.arange(size) / RATE, rng.choice([50.0, 60.0])
    tones = [np.sin(2 * np.pi * (k * base * time + rng.uniform())) / k for k in range(1, 9)]
    return np.sum(tones, axis=0) + 0.1 * rng.normal(size=size)


def crackle(size: int, rng: np.random.Generator) -> np.ndarray:
    """Clicks at random moments, in hiss."""
    clicks = (rng.uniform(size=size) < 30 / RATE) * rng.normal(scale=20.0, size=size)
    return np.convolve(clicks, np.exp(-np.arange(64) / 8.0), "same") + 0.3 * rng.normal(size=size)


NOISES: Mapping[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "white": white,
    "pink": _coloured(1.0),
    "brown": _coloured(2.0),
    "hum": hum,
    "crackle": crackle,
}


def make_clips(part: Part, count: int, seed: int, seconds: float = 6.0) -> Clips:
    """Sentences in noise at 5 to 25 dB, noise alone before and after.

    Args:
      part: `train` for calibration, `test` to measure on.
      count: how many clips.
      seed: which ones.
      seconds: of each; longer sentences are cut.

    Raises:
      SourceError: if espeak-ng is missing.
    """
    rng = np.random.default_rng([seed, list(_SENTENCES).index(part)])
    # Whole chunks, and a length that is easy for the Fourier transform of coloured noise.
    size = int(seconds * RATE) // CHUNK * CHUNK
    audio, speech, noise = [], [], []
    for k in range(count):
        text = str(rng.choice(_SENTENCES[part]))
        clean = place(synthesis.speak(text, synthesis.draw_voice(part, rng)), size)
        kinds = list(NOISES)
        one, spoken, quiet = mix(clean, NOISES[kinds[k % len(kinds)]](size, rng), rng.uniform(5.0, 25.0))
        audio.append(one)
        speech.append(spoken)
        noise.append(quiet)
    return Clips(np.stack(audio), np.stack(speech), np.stack(noise))


def place(samples: np.ndarray, size: int) -> np.ndarray:
    """Puts speech after a second of silence, and leaves a second after it."""
    lead = int(_LEAD_S * RATE)
    clean = np.zeros(size)
    spoken = samples[: max(0, size - 2 * lead)]
    clean[lead : lead + len(spoken)] = spoken
    return clean


def mix(clean: np.ndarray, noise: np.ndarray, decibels: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Adds noise to speech.

    Args:
      clean: speech and silence `(samples,)`, whole chunks.
      noise: `(samples,)`, of any loudness.
      decibels: power of the speech, where there is some, over that of the noise.

    Returns:
      The mixture, float32 with a peak of 0.5; whether each chunk holds speech; whether it is far from any.
    """
    powers = np.square(clean).reshape(-1, CHUNK).mean(1)
    spoken = powers > powers.max() * 10 ** (_SPEECH_DB / 10)
    wanted = powers[spoken].mean() / 10 ** (decibels / 10)
    mixed = clean + noise * np.sqrt(wanted / np.square(noise).mean())
    reach = int(np.ceil(_MARGIN_S * RATE / CHUNK))
    near = np.convolve(powers > 0, np.ones(2 * reach + 1), "same") > 0
    return (0.5 * mixed / np.abs(mixed).max()).astype(np.float32), spoken, ~near
