"""Files of a tree: dense, or the kept values with one bit a position, and how many bytes each really takes.

Both are plain uncompressed NumPy archives (`.npz`) that are read without executing anything in them.
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.masks import check_masks_fit
from jaxprune.measure.figure import Figure
from jaxprune.trees import PyTree


def write_file(path: str | Path, params: PyTree, masks: PyTree | None = None) -> Path:
    """Writes a tree to one `.npz` file: every element, or under masks only the kept ones.

    A leaf with a scalar mask is written whole, and not at all where that is False. Otherwise its mask takes one bit an
    entry, in the mask's own shape, so that a channel mask takes one bit a channel.

    Args:
      path: the file; `.npz` is appended where it is missing.
      params: arrays.
      masks: a concrete mask tree for them.

    Returns:
      The path that was written.

    Raises:
      ValueError: the masks do not fit, or two leaves have one path.

    Example:
      >>> params = {"w": jnp.array([[3.0, 4.0]])}
      >>> file = write_file(tempfile.mkdtemp() + "/params", params, {"w": jnp.array([[True, False]])})
      >>> read_file(file, params)["w"].tolist()
      [[3.0, 0.0]]
    """
    path = Path(path)
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
    named = trees.leaves_with_paths(params)
    if len({name for name, _ in named}) < len(named):
        raise ValueError(f"two leaves have one path: {trees.list_paths(sorted(name for name, _ in named))}.")
    arrays: dict[str, Any] = {}
    if masks is None:
        arrays = {f"{name}:dense": _bits(np.asarray(leaf)) for name, leaf in named}
    else:
        check_masks_fit(masks, params)
        for (name, leaf), mask in zip(named, jax.tree.leaves(masks), strict=True):
            arrays |= {f"{name}:{part}": array for part, array in _parts(np.asarray(leaf), np.asarray(mask)).items()}
    np.savez(path, allow_pickle=False, **arrays)
    return path


def read_file(path: str | Path, like: PyTree) -> PyTree:
    """Reads a file of `write_file`; what was pruned is zero.

    Args:
      path: the file.
      like: a tree of the same paths, shapes and dtypes; `jax.ShapeDtypeStruct` will do.

    Returns:
      The tree, to the bit.

    Raises:
      ValueError: the file holds another tree.

    Example:
      >>> params = {"w": jnp.ones(2)}
      >>> read_file(write_file(tempfile.mkdtemp() + "/params.npz", params), params)["w"].tolist()
      [1.0, 1.0]
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    leaves = []
    for name, leaf in trees.leaves_with_paths(like):
        kinds = {key.rpartition(":")[2]: array for key, array in arrays.items() if key.rpartition(":")[0] == name}
        leaves.append(jnp.asarray(_restored(kinds, tuple(leaf.shape), np.dtype(leaf.dtype), f"{path}: {name}")))
    wanted = set(trees.paths(like))
    unknown = sorted({key.rpartition(":")[0] for key in arrays} - wanted)
    if unknown:
        raise ValueError(f"{path} also holds {trees.list_paths(unknown)}; give the tree that was written as `like`.")
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def file_bytes(params: PyTree, masks: PyTree | None = None) -> Figure:
    """The size of the file that `write_file` makes, by making it in a temporary folder.

    Args:
      params: arrays.
      masks: write only what these keep.

    Returns:
      Measured bytes; names and headers of the arrays, some 300 bytes each, are included.

    Raises:
      ValueError: as for `write_file`.

    Example:
      >>> file_bytes({"w": jnp.zeros(1000, jnp.float32)}).value > 4000
      True
    """
    with tempfile.TemporaryDirectory() as folder:
        size = write_file(Path(folder) / "tree.npz", params, masks).stat().st_size
    form = "dense" if masks is None else "kept values and one bit a position"
    return Figure(float(size), "bytes", "measured", "size of the .npz file", note=f"{form}, uncompressed")


def _parts(array: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    if not mask.ndim:
        return {"dense": _bits(array)} if mask else {"gone": np.zeros(0, np.uint8)}
    kept = _bits(array)[np.broadcast_to(mask, array.shape)]
    # A mask may have size-1 axes: its shape is part of it.
    return {"mask": np.packbits(mask), "shape": np.array(mask.shape, np.int32), "values": kept}


def _restored(kinds: dict[str, np.ndarray], shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
    bits = _bits(np.zeros(shape, dtype))
    if kinds.keys() == {"dense"}:
        bits = kinds["dense"]
    elif kinds.keys() == {"mask", "shape", "values"}:
        small = tuple(kinds["shape"].tolist())
        mask = np.unpackbits(kinds["mask"], count=int(np.prod(small))).astype(bool).reshape(small)
        try:
            bits[np.broadcast_to(mask, shape)] = kinds["values"].astype(bits.dtype, casting="no")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} does not fit {dtype}{list(shape)}: {error}") from error
    elif kinds.keys() != {"gone"}:
        raise ValueError(f"{name} is not in the file, or not by jp.measure.write_file: it has {sorted(kinds)}.")
    if bits.shape != shape or bits.dtype != _bits(np.zeros(0, dtype)).dtype:
        raise ValueError(f"{name} is {bits.dtype}{list(bits.shape)} in the file, but {dtype}{list(shape)} is wanted.")
    return bits.view(dtype)


def _bits(array: np.ndarray) -> np.ndarray:
    """The bits of dtypes that NumPy's format does not know, such as bfloat16, as integers."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array
