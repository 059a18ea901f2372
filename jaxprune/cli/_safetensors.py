"""Safetensors files: a JSON header and raw bytes. The package of that name checks the header."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxprune.cli.checkpoints import Leaf

_NATIVE = {
    "BOOL": "bool",
    **{
        f"{letter}{bits}": f"{name}{bits}" for letter, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
    },
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "C64": "complex64",
}
# NumPy has these only through ml_dtypes, and JAX brings that.
_EXTENDED = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


@dataclasses.dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file; see `Checkpoint`."""

    path: Path
    leaves: tuple[Leaf, ...]
    metadata: dict[str, Any]
    kind: Literal["safetensors"] = "safetensors"

    def read(self, leaves: Sequence[Leaf]) -> Iterator[tuple[Leaf, np.ndarray]]:
        """Yields values, one leaf at a time in memory."""
        places = _places(self.path) if any(leaf.dtype in _EXTENDED.values() for leaf in leaves) else {}
        with _package().safe_open(self.path, framework="np") as file:
            for leaf in leaves:
                if leaf.dtype in _EXTENDED.values():
                    dtype = jnp.dtype(leaf.dtype)
                    values = np.fromfile(self.path, dtype, leaf.size, offset=places[leaf.path])
                    yield leaf, values.reshape(leaf.shape)
                else:
                    yield leaf, np.asarray(file.get_tensor(leaf.path))

    def tree(self, values: Mapping[str, Any]) -> Any:
        """A dictionary by name; nested where names hold `/`."""
        root: dict[str, Any] = {}
        for path, value in values.items():
            *folders, name = path.split("/")
            inner: Any = root
            for folder in folders:
                inner = inner.setdefault(folder, {})
                if not isinstance(inner, dict):
                    break
            if not isinstance(inner, dict) or name in inner:
                return dict(values)  # "a" beside "a/b" cannot be nested
            inner[name] = value
        return root


def open_safetensors(path: Path) -> SafetensorsFile:
    """Reads the header of a file.

    Args:
      path: the file.

    Returns:
      The open checkpoint.

    Raises:
      ValueError: no safetensors file, a damaged one, or a dtype that JAX has not.
      ImportError: the package is not installed.
    """
    safetensors = _package()
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            names = file.keys()  # to iterate over the file itself is not possible
            slices = {name: file.get_slice(name) for name in names}
            described = [(name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()]
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or it is damaged: {error}.") from error
    known = _NATIVE | _EXTENDED
    for name, dtype, _ in described:
        if dtype not in known:
            raise ValueError(f"{path}: {name} has the dtype {dtype}; the dtypes that are read are {', '.join(known)}.")
    return SafetensorsFile(path, tuple(Leaf(name, shape, known[dtype]) for name, dtype, shape in described), metadata)


def write_safetensors(out: Path, values: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes a file beside its place and then moves it there.

    Args:
      out: the file.
      values: arrays and numbers by name.
      metadata: strings for the header.

    Raises:
      ValueError: a string, or a dtype that the format has not.
      ImportError: the package is not installed.
    """
    safetensors = _package()
    from safetensors.numpy import save_file

    for path, value in values.items():
        if isinstance(value, str):
            raise ValueError(f"{path} is text, which safetensors does not hold; write an Orbax folder instead.")
    # The package writes the memory of an array as it lies, so strides would be lost.
    arrays = {path: np.asarray(value, order="C") for path, value in values.items()}
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        save_file(arrays, part, metadata=dict(metadata) or None)
        os.replace(part, out)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{out} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _places(path: Path) -> dict[str, int]:
    """Where the bytes of each leaf begin: the package checks the header, but gives NumPy no 8-bit floats."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _package() -> ModuleType:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError("safetensors files need a package: pip install safetensors") from error
    return safetensors
