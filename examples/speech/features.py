"""Audio files and log-mel energies, in NumPy."""

from __future__ import annotations

import functools
import math
import wave
from pathlib import Path

import numpy as np

RATE = 16_000
FRAME_SHIFT_S = 0.010
_FRAME = 400  # 25 ms at 16 kHz
_SHIFT = 160
_FFT = 512


def read_wav(path: Path) -> np.ndarray:
    """Reads 16-bit PCM with one channel at 16 kHz: float32 `(samples,)` in [-1, 1).

    Raises:
      ValueError: for a file of another kind.
    """
    with wave.open(str(path)) as stream:
        samples, rate = decode(stream)
    if rate != RATE:
        raise ValueError(
            f"{path} has {rate} samples a second; {RATE} are needed. Resample it, such as with sox -r 16000"
        )
    return samples


def decode(stream: wave.Wave_read) -> tuple[np.ndarray, int]:
    """Samples float32 `(samples,)` and their rate in hertz, of an open WAV file with one channel of 16 bits."""
    if stream.getsampwidth() != 2 or stream.getnchannels() != 1:
        raise ValueError(
            f"a WAV file of {stream.getnchannels()} channels and {8 * stream.getsampwidth()} bits; "
            "one channel of 16 bits is needed"
        )
    raw = np.frombuffer(stream.readframes(stream.getnframes()), "<i2")
    return raw.astype(np.float32) / 32_768, stream.getframerate()


def resample(samples: np.ndarray, rate: int, to: int = RATE) -> np.ndarray:
    """Another rate, by cutting off or adding frequencies: exact for what both rates can hold.

    Args:
      samples: float32 `(samples,)`.
      rate: of them, in hertz.
      to: the wanted rate.

    Returns:
      float32 `(round(samples * to / rate),)`.
    """
    # Padded to a length of small factors: a Fourier transform of a large prime is slow.
    unit = 16 * rate // math.gcd(rate, to)
    whole = -(-len(samples) // unit) * unit
    size = whole * to // rate
    spectrum = np.fft.rfft(samples, whole)
    spectrum = np.pad(spectrum, (0, max(0, size // 2 + 1 - len(spectrum))))[: size // 2 + 1]
    scaled = np.fft.irfft(spectrum, size) * (size / whole)
    return scaled[: round(len(samples) * to / rate)].astype(np.float32)


@functools.cache
def mel_filters(bands: int) -> np.ndarray:
    """Triangles that overlap by half, evenly spaced on the mel scale from 60 Hz to 7.6 kHz: `(bins, bands)`."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 2_595 * np.log10(1 + np.asarray(hertz) / 700)

    bins = mel(np.fft.rfftfreq(_FFT, 1 / RATE))
    edges = np.linspace(mel(60.0), mel(7_600.0), bands + 2)
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])[None, :]
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])[None, :]
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(samples: np.ndarray, bands: int = 32) -> np.ndarray:
    """Log energies of mel bands in frames of 25 ms, one every 10 ms, less their mean over the utterance.

    Args:
      samples: float32 `(samples,)` at 16 kHz.
      bands: how many.

    Returns:
      float32 `(frames, bands)`; a clip shorter than a frame is padded to one.
    """
    if len(samples) < _FRAME:
        samples = np.pad(samples, (0, _FRAME - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, _FRAME)[::_SHIFT] * np.hanning(_FRAME)
    power = np.abs(np.fft.rfft(frames, _FFT)) ** 2
    energies = np.log(power.astype(np.float32) @ mel_filters(bands) + 1e-6)
    return (energies - energies.mean(0)).astype(np.float32)


def stack_frames(frames: np.ndarray, count: int) -> np.ndarray:
    """Puts `count` frames after each other into one step; what is left over at the end is dropped."""
    steps = max(1, len(frames) // count)
    frames = np.pad(frames, ((0, max(0, count - len(frames))), (0, 0)))
    return frames[: steps * count].reshape(steps, count * frames.shape[1])
