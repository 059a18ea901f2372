"""SYNTHETIC speech by espeak-ng, for want of real recordings that need no download.

Everything that is made of it must say so: a recogniser that is trained on it does not carry over to real speech.
"""

from __future__ import annotations

import functools
import io
import re
import shutil
import subprocess
import wave
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from examples.data.sources import SourceError
from examples.speech import features

# Voices for training, validation and test: no voice variant is in two of them.
VOICES: Mapping[str, tuple[str, ...]] = {
    "train": ("m1", "m2", "m3", "m7", "f1", "f2", "f3", "klatt", "klatt3", "croak"),
    "validation": ("m8", "f5"),
    "test": ("m4", "m5", "m6", "f4", "klatt2"),
}
_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")


class Voice(NamedTuple):
    """How espeak-ng speaks.

    Attributes:
      name: accent and variant, such as `en-us+m1`.
      speed: words a minute.
      pitch: 0 to 99.
    """

    name: str
    speed: int
    pitch: int


def espeak_version() -> str:
    """The version of espeak-ng.

    Raises:
      SourceError: if it is not installed.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise SourceError(
            "espeak-ng, which speaks the synthetic clips, is not installed. Debian and Ubuntu: "
            "apt-get install espeak-ng; macOS: brew install espeak-ng"
        )
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else "of unknown version"


def draw_voice(part: str, rng: np.random.Generator) -> Voice:
    """A random voice of a part of the data: one of the keys of `VOICES`."""
    name = f"{rng.choice(_ACCENTS)}+{rng.choice(VOICES[part])}"
    return Voice(name, int(rng.integers(130, 210)), int(rng.integers(25, 75)))


@functools.lru_cache(maxsize=512)
def speak(text: str, voice: Voice) -> np.ndarray:
    """Speaks a text: float32 `(samples,)` at 16 kHz.

    Raises:
      SourceError: if espeak-ng is missing or fails.
    """
    command = ["espeak-ng", "--stdout", "-v", voice.name, "-s", str(voice.speed), "-p", str(voice.pitch), text]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        espeak_version()  # says how to install it
        raise
    except subprocess.CalledProcessError as error:
        raise SourceError(f"{' '.join(command)} failed: {error.stderr.decode(errors='replace').strip()}") from error
    with wave.open(io.BytesIO(_with_length(done.stdout))) as stream:
        samples, rate = features.decode(stream)
    return features.resample(samples, rate)


def _with_length(content: bytes) -> bytes:
    """Puts the true length into a WAV that was written to a pipe, where it could not be known beforehand."""
    start = content.find(b"data") + 8
    sizes = (len(content) - 8).to_bytes(4, "little"), (len(content) - start).to_bytes(4, "little")
    return content[:4] + sizes[0] + content[8 : start - 4] + sizes[1] + content[start:]
