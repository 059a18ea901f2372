"""Silero VAD: a pretrained network that hears whether someone speaks, as a pure function.

Every 32 ms it gives the probability of speech: a short-time Fourier transform whose kernels are fixed, four
convolutions, an LSTM cell that carries its state from chunk to chunk, and a sigmoid. 0.3 million parameters. The
weights are those of the PyPI wheel silero-vad (MIT licence); the wheel is not installed and nothing in it is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from safetensors.numpy import load_file

from examples.data import sources

PyTree = Any
RATE = 16_000
CHUNK = 512  # samples that are new in each call, 32 ms
# All matrices but the Fourier kernels, which are not learned, and the output layer of one row.
PRUNABLE = r"conv_\d/kernel|lstm/(input|hidden)"

_CONTEXT = 64  # samples of the chunk before that a call sees again
_HOP = 128
_STRIDES = (1, 2, 2, 1)
_WHEEL = "silero-vad==6.2.3"
_WHEEL_SHA256 = "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"
_FILE = "silero_vad_16k.safetensors"
_FILE_SHA256 = "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1"


class State(NamedTuple):
    """What the LSTM carries from chunk to chunk.

    Attributes:
      hidden: `(batch, 128)`.
      cell: `(batch, 128)`.
    """

    hidden: jax.Array
    cell: jax.Array


def start_state(params: PyTree, batch: int) -> State:
    """The state before the first chunk: zeros."""
    zeros = jnp.zeros((batch, params["lstm"]["hidden"].shape[0]), jnp.float32)
    return State(zeros, zeros)


def encode(params: PyTree, audio: jax.Array) -> jax.Array:
    """What the convolutions make of chunks, each for itself.

    Args:
      params: see `load_silero`.
      audio: `(batch, 576)`: 64 samples of context and 512 new ones.

    Returns:
      `(batch, 128)`.
    """
    audio = jnp.concatenate([audio, audio[:, -2 : -2 - _CONTEXT : -1]], axis=1)  # mirrored at the end
    spectrum = _convolve(audio[:, :, None], params["fourier"]["kernel"], _HOP, 0)
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    x = jnp.sqrt(jnp.square(real) + jnp.square(imaginary))
    for k, stride in enumerate(_STRIDES, start=1):
        layer = params[f"conv_{k}"]
        x = jax.nn.relu(_convolve(x, layer["kernel"], stride, 1) + layer["bias"][None, None, :])
    return x[:, 0]


def recur(params: PyTree, state: State, x: jax.Array) -> tuple[State, jax.Array]:
    """One step of the LSTM, and the probability of speech.

    Args:
      params: see `load_silero`.
      state: from the chunk before.
      x: from `encode`, `(batch, 128)`.

    Returns:
      The new state, and probabilities `(batch,)`.
    """
    lstm, output = params["lstm"], params["output"]
    gates = x @ lstm["input"] + state.hidden @ lstm["hidden"] + lstm["bias"][None, :]
    write, keep, value, read = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(keep) * state.cell + jax.nn.sigmoid(write) * jnp.tanh(value)
    hidden = jax.nn.sigmoid(read) * jnp.tanh(cell)
    logits = jax.nn.relu(hidden) @ output["kernel"] + output["bias"][None, :]
    return State(hidden, cell), jax.nn.sigmoid(logits[:, 0])


def probabilities(params: PyTree, audio: jax.Array) -> jax.Array:
    """The probability of speech in every chunk of clips.

    The convolutions see all chunks at once, since only the LSTM depends on what came before.

    Args:
      params: see `load_silero`.
      audio: float32 `(batch, samples)` at 16 kHz, in [-1, 1]; an unfinished last chunk is filled with zeros.

    Returns:
      `(batch, chunks)`, a chunk every 512 samples.
    """
    batch, samples = audio.shape
    chunks = -(-samples // CHUNK)
    audio = jnp.pad(audio, ((0, 0), (_CONTEXT, chunks * CHUNK - samples)))
    new = audio[:, _CONTEXT:].reshape(batch, chunks, CHUNK)
    before = audio[:, : chunks * CHUNK].reshape(batch, chunks, CHUNK)[:, :, :_CONTEXT]
    encoded = encode(params, jnp.concatenate([before, new], axis=2).reshape(batch * chunks, _CONTEXT + CHUNK))
    steps = jnp.moveaxis(encoded.reshape(batch, chunks, -1), 1, 0)
    _, spoken = lax.scan(lambda state, x: recur(params, state, x), start_state(params, batch), steps)
    return spoken.T


def load_silero(path: Path | None = None) -> PyTree:
    """Loads the published weights for 16 kHz.

    Args:
      path: a file of yours, `silero_vad_16k.safetensors`, or its folder; when given, nothing else is tried.

    Returns:
      Parameters, float32: kernels of convolutions `(width, in, out)`, matrices of the LSTM `(in, 4 x 128)`, in the
      order write, keep, value, read.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the weights are not those of this model.
      SourceError: if no source works.
    """
    if path is not None:
        path = path / _FILE if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}; {_FILE} from the wheel {_WHEEL} is needed")
    else:

        def from_wheel() -> Path:
            return sources.wheel_file(_WHEEL, _WHEEL_SHA256, f"silero_vad/data/{_FILE}")

        installed = sources.installed_file("silero_vad", f"data/{_FILE}")
        attempts = [(f"PyPI package {_WHEEL}", from_wheel)]
        path = installed or sources.first_that_works("Silero VAD", attempts)
        sources.check_sha256(path, _FILE_SHA256)
    return params_from_torch(load_file(path))


def params_from_torch(tensors: Mapping[str, np.ndarray]) -> PyTree:
    """Converts PyTorch's layout, in which outputs come first and the LSTM has two biases.

    Raises:
      ValueError: if a tensor is missing or left over.
    """
    left = dict(tensors)

    def take(name: str) -> np.ndarray:
        if name not in left:
            raise ValueError(f"the weights lack {name!r}; {_FILE} of the wheel {_WHEEL} is needed")
        return left.pop(name)

    def convolution(name: str) -> PyTree:
        return {
            "kernel": jnp.asarray(take(f"{name}.weight").transpose(2, 1, 0)),
            "bias": jnp.asarray(take(f"{name}.bias")),
        }

    params: PyTree = {"fourier": {"kernel": jnp.asarray(take("stft_conv.weight").transpose(2, 1, 0))}}
    params |= {f"conv_{k}": convolution(f"conv{k}") for k in range(1, len(_STRIDES) + 1)}
    params["lstm"] = {
        "input": jnp.asarray(take("lstm_cell.weight_ih").T),
        "hidden": jnp.asarray(take("lstm_cell.weight_hh").T),
        "bias": jnp.asarray(take("lstm_cell.bias_ih") + take("lstm_cell.bias_hh")),
    }
    params["output"] = {
        "kernel": jnp.asarray(take("final_conv.weight")[:, :, 0].T),
        "bias": jnp.asarray(take("final_conv.bias")),
    }
    if left:
        raise ValueError(f"the weights hold {len(left)} tensors that Silero VAD has not, such as {min(left)!r}")
    return params


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """A convolution over time: `(batch, steps, in)` and `(width, in, out)`."""
    return lax.conv_general_dilated(x, kernel, (stride,), [(padding, padding)], dimension_numbers=("NWC", "WIO", "NWC"))
