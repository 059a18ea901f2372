"""Two file formats for a network: dense arrays, and the values that are not zero with a bit for each position.

Both are uncompressed NumPy archives (`.npz`). Which pixels are used is stored as one bit a pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from examples.models import lenet

PyTree = Any


def save_dense(path: Path, params: PyTree, pixels: np.ndarray) -> int:
    """Writes every element; returns the bytes of the file."""
    return _save(path, pixels, {f"{name}/{part}": a for name, layer in params.items() for part, a in layer.items()})


def save_sparse(path: Path, params: PyTree, pixels: np.ndarray) -> int:
    """Writes biases, the kernels' nonzero values and their masks at one bit a position; returns the bytes."""
    packed = jax.jit(jp.pack)(jp.from_zeros(params, where=lenet.KERNELS))
    arrays: dict[str, Any] = {}
    for name, layer in params.items():
        kernel = np.asarray(layer["kernel"])
        arrays |= {
            f"{name}/bias": layer["bias"],
            f"{name}/values": kernel[kernel != 0],
            f"{name}/mask": packed[name]["kernel"],
        }
    return _save(path, pixels, arrays)


def load(path: Path) -> tuple[PyTree, np.ndarray]:
    """Reads either format.

    Returns:
      The parameters, at their dense shapes, and bool `(pixels of an image,)`.
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    pixels = np.unpackbits(arrays.pop("pixels"), count=int(arrays.pop("pixel_count"))).astype(bool)
    params: PyTree = {}
    rows = int(pixels.sum())
    for name in sorted({key.split("/")[0] for key in arrays}):
        bias = arrays[f"{name}/bias"]
        kernel = arrays.get(f"{name}/kernel")
        if kernel is None:  # its shape follows from the layer below and its own bias
            kernel = np.zeros((rows, bias.size), bias.dtype)
            mask = jp.unpack({"kernel": jnp.asarray(arrays[f"{name}/mask"])}, {"kernel": kernel})["kernel"]
            kernel[np.asarray(mask)] = arrays[f"{name}/values"]
        params[name] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
        rows = bias.size
    return params, pixels


def _save(path: Path, pixels: np.ndarray, arrays: dict[str, Any]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = jax.tree.map(np.asarray, arrays)
    np.savez(path, allow_pickle=False, pixels=np.packbits(pixels), pixel_count=np.uint16(pixels.size), **arrays)
    return path.stat().st_size
