"""Checkpoints for the command line: opened without running anything in them, read leaf by leaf, written whole."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jax.numpy as jnp
import numpy as np

from jaxprune import trees

# Formats that are not read, by suffix, and why.
_PICKLED = "it may hold pickled objects, which run code when they are loaded"
_UNKNOWN = "it is neither a safetensors file nor an Orbax folder"
_FOREIGN = {
    **{f".{name}": _PICKLED for name in ("pt", "pth", "bin", "ckpt", "pkl", "pickle", "joblib", "npy", "npz")},
    **{f".{name}": _UNKNOWN for name in ("h5", "hdf5", "keras", "onnx", "gguf", "msgpack", "tflite", "zip", "json")},
}

# What optimisers keep is no weight: zeros in it mean something else.
_OPTIMISER_STATES = ("opt_state", "optimizer", "optimiser", "opt")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of a checkpoint, without its values.

    Attributes:
      path: its name; keys are joined with `/` in Orbax folders.
      shape: its shape.
      dtype: its dtype as NumPy (or ml_dtypes) names it; "text" for a string.
      form: an array, a Python number, or a string.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    form: Literal["array", "number", "text"] = "array"

    @property
    def size(self) -> int:
        """How many entries it has."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether it holds real floating numbers, which alone are pruned."""
        return self.form == "array" and jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating)

    @property
    def nbytes(self) -> int:
        """Bytes of its values, dense."""
        return 0 if self.form == "text" else self.size * jnp.dtype(self.dtype).itemsize


class Checkpoint(Protocol):
    """An open checkpoint."""

    @property
    def kind(self) -> Literal["safetensors", "orbax"]:
        """The format."""
        ...

    @property
    def path(self) -> Path:
        """The file or folder that is read: of a folder of steps, the one that was chosen."""
        ...

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """What is in it, in the order in which it is best read."""
        ...

    @property
    def metadata(self) -> dict[str, Any]:
        """Whatever else its writer put there: strings in safetensors, JSON in Orbax."""
        ...

    def read(self, leaves: Sequence[Leaf]) -> Iterator[tuple[Leaf, np.ndarray]]:
        """Yields the values of some leaves, in the order given, holding few at a time."""
        ...

    def tree(self, values: Mapping[str, Any]) -> Any:
        """Values by path in the containers of this checkpoint."""
        ...


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a safetensors file or an Orbax folder; of a folder of steps, the last step.

    Only names, shapes and dtypes are read. Containers other than dictionaries and lists (NamedTuples, modules) become
    these; the names of the leaves stay.

    Args:
      path: the file or folder.

    Returns:
      The checkpoint.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: it is of another format, damaged, or two leaves have one name.
      ImportError: a safetensors file, and the package is not installed.

    Example:
      >>> import tempfile, jax.numpy as jnp, jaxprune as jp
      >>> folder = tempfile.mkdtemp() + "/params"
      >>> jp.storage.save(folder, {"dense": {"kernel": jnp.ones((2, 3))}})
      >>> open_checkpoint(folder).leaves
      (Leaf(path='dense/kernel', shape=(2, 3), dtype='float32', form='array'),)
    """
    from jaxprune.cli._orbax import open_orbax
    from jaxprune.cli._safetensors import open_safetensors

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is nothing at {path}.")
    if path.is_file():
        if path.suffix.lower() in _FOREIGN:
            raise ValueError(
                f"{path} is not read: {_FOREIGN[path.suffix.lower()]}. Save the model as safetensors or with Orbax."
            )
        checkpoint: Checkpoint = open_safetensors(path)
    else:
        checkpoint = open_orbax(path)
    names = [leaf.path for leaf in checkpoint.leaves]
    if not names:
        raise ValueError(f"{checkpoint.path} holds no array.")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{checkpoint.path}: two leaves are called {trees.list_paths(twice)}; rename one of them.")
    return checkpoint


def weights(leaves: Sequence[Leaf]) -> set[str]:
    """The paths of the leaves that are pruned unless told otherwise: floating, with two axes or more.

    Where some leaf lies below `params`, only what is below it counts; else all but what is below `opt_state`,
    `optimizer` or `opt`. Keys are joined with `/` in Orbax folders, and with `/` or dots in safetensors files.

    Args:
      leaves: all leaves of a checkpoint.

    Returns:
      Their paths.

    Example:
      >>> sorted(weights([Leaf("params/w", (2, 2), "float32"), Leaf("opt_state/mu/w", (2, 2), "float32")]))
      ['params/w']
    """
    keys = {leaf.path: re.split(r"[/.]", leaf.path) for leaf in leaves}
    tops = {path: own[0] if len(own) > 1 else "" for path, own in keys.items()}
    if "params" in tops.values():
        inside = {path for path, top in tops.items() if top == "params"}
    else:
        inside = {path for path, top in tops.items() if top not in _OPTIMISER_STATES}
    return {leaf.path for leaf in leaves if leaf.is_floating and len(leaf.shape) > 1 and leaf.path in inside}


def check_output(out: str | Path, source: Sequence[Path], *, overwrite: bool) -> Path:
    """Whether a checkpoint may be written to `out`, before any work is done for it.

    Args:
      out: where to write: a safetensors file where the name ends in `.safetensors`, else an Orbax folder.
      source: the paths that are read; neither of them may hold the other.
      overwrite: whether what is there may be replaced; only a checkpoint is.

    Returns:
      The absolute path.

    Raises:
      ValueError: it must not be written, and why.

    Example:
      >>> check_output("/tmp/model.pt", [], overwrite=False)
      Traceback (most recent call last):
      ValueError: --out /tmp/model.pt: .pt files are not written; end the name in .safetensors, or give a folder's name.
    """
    given, out = out, Path(out).resolve()
    if out.suffix.lower() in _FOREIGN:
        raise ValueError(
            f"--out {given}: {out.suffix} files are not written; end the name in .safetensors, or give a folder's name."
        )
    for path in (path.resolve() for path in source):
        if out == path or out in path.parents or path in out.parents:
            raise ValueError(f"--out {given} overlaps with the checkpoint {path} that is read; give another place.")
    if not out.parent.is_dir():
        raise ValueError(f"--out {given}: the folder {out.parent} does not exist; make it first.")
    if out.exists():
        if not overwrite:
            raise ValueError(f"--out {given} exists; give another place, or --overwrite to replace it.")
        # Orbax removes the whole folder that it replaces, so it must be one that Orbax made.
        ours = out.is_file() if out.suffix == ".safetensors" else (out / "_METADATA").is_file()
        if not ours:
            raise ValueError(f"--out {given} exists and is no checkpoint of that kind, so --overwrite leaves it alone.")
    return out


def write_checkpoint(out: Path, source: Checkpoint, values: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Writes values by path, with the metadata and containers of a checkpoint where the format is the same.

    The file or folder appears under its name only when it is complete. From Orbax to safetensors, keys are joined with
    `/`; back, names with `/` become nested dictionaries.

    Args:
      out: from `check_output`.
      source: the checkpoint that the values come from.
      values: arrays, numbers and strings by path.
      overwrite: replace what is there.

    Raises:
      ValueError: the format cannot hold a value.
      ImportError: a safetensors file, and the package is not installed.
    """
    from jaxprune.cli._orbax import write_orbax
    from jaxprune.cli._safetensors import write_safetensors

    same = source.kind == ("safetensors" if out.suffix == ".safetensors" else "orbax")
    metadata = source.metadata if same else {}
    if out.suffix == ".safetensors":
        write_safetensors(out, values, metadata)
    else:
        write_orbax(out, source.tree(values), metadata, overwrite=overwrite)
