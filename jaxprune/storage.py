"""Orbax checkpoints of masks, optimiser states and plans, checked when they come back.

Orbax casts what it reads to the dtypes asked for, and does not notice every damaged byte. So a checkpoint made here
also says what is in it (paths, shapes, dtypes, checksums), and `restore` compares.
"""

import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.trees import PyTree

__all__ = ["keys_from_data", "keys_to_data", "restore", "save"]

_FORMAT = "jaxprune"


def save(path: str | Path, tree: PyTree, *, overwrite: bool = False) -> None:
    """Saves any pytree of arrays (masks, an optimiser state, packed masks) as an Orbax checkpoint.

    The folder appears under its name only when it is complete. Typed PRNG keys are saved too.

    Args:
      path: the folder to make.
      tree: arrays, on one device or sharded over many.
      overwrite: replace what is there.

    Raises:
      ValueError: the folder exists and `overwrite` is false, or the path is an address such as `gs://...`.
      TypeError: a leaf is no array.

    Example:
      >>> import tempfile, jax.numpy as jnp, jaxprune as jp
      >>> folder = tempfile.mkdtemp() + "/masks"
      >>> jp.storage.save(folder, {"w": jnp.array([True, False])})
      >>> jp.storage.restore(folder, {"w": jnp.zeros(2, bool)})["w"].tolist()
      [True, False]
    """
    import orbax.checkpoint as ocp

    path = _local(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; give another path, or overwrite=True to replace it.")
    plain = _storable(tree)
    content = {"format": _FORMAT, "leaves": [_describe(name, leaf, True) for name, leaf in _leaves(plain)]}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.StandardSave(plain, custom_metadata=content), force=overwrite)


def restore(path: str | Path, like: PyTree) -> PyTree:
    """Restores a checkpoint of `save` to the same bits.

    Args:
      path: its folder.
      like: a tree of the same structure, shapes and dtypes, such as a fresh `tx.init(params)`; also of
        `jax.ShapeDtypeStruct`. Its shardings are those of the result.

    Returns:
      The saved tree.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: what is there was not made by `save`, is damaged, or holds another tree than `like`; the paths that
        differ are named.

    Example:
      >>> import tempfile, jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = jp.sparsify(optax.adam(0.1), jp.pruners.gmp(0.5, begin=0, end=10))
      >>> params = {"w": jnp.ones((2, 4))}
      >>> folder = tempfile.mkdtemp() + "/state"
      >>> jp.storage.save(folder, tx.init(params))
      >>> state = jp.storage.restore(folder, tx.init(params))
      >>> int(state.step)
      0
    """
    import orbax.checkpoint as ocp

    path = _local(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}; save one with jp.storage.save.")
    damaged = f"the checkpoint {path} is damaged"
    plain = _storable(like)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        saved = _read_content(checkpointer, path)
        _compare(saved, [_describe(name, leaf, False) for name, leaf in _leaves(plain)], path)
        target = jax.tree.map(_target, plain)
        try:
            restored = checkpointer.restore(path, args=ocp.args.StandardRestore(target))
        except Exception as error:  # Orbax and TensorStore raise many kinds.
            raise ValueError(f"{damaged}, its arrays cannot be read: {error}") from error
    wrong = [
        name
        for (name, leaf), entry in zip(_leaves(restored), saved, strict=True)
        if entry["checksum"] is not None and _checksum(leaf) not in (None, entry["checksum"])
    ]
    if wrong:
        raise ValueError(f"{damaged}, other bytes than were saved came back for {trees.list_paths(wrong)}.")
    # What is empty was not saved.
    values = iter(jax.tree.leaves(restored))
    filled = [next(values) if np.size(leaf) else jnp.zeros(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(like)]
    return keys_from_data(jax.tree.unflatten(jax.tree.structure(like), filled), like)


def _local(path: str | Path) -> Path:
    """A path on this machine; `Path` would make a folder `gs:` of a bucket's address."""
    if "://" in str(path):
        raise ValueError(
            f"path={str(path)!r}: checkpoints are saved to and restored from a folder of this machine. Give a local or "
            "mounted path, and copy the folder to its place."
        )
    return Path(path).resolve()


def keys_to_data(tree: PyTree) -> PyTree:
    """Typed PRNG keys as plain integers, which every version of Orbax can store.

    Args:
      tree: arrays, or their shapes (`jax.ShapeDtypeStruct`), some of which may be typed keys.

    Returns:
      The tree with uint32 arrays (or their shapes) in place of keys.

    Example:
      >>> keys_to_data({"key": jax.random.key(0)})["key"].tolist()
      [0, 0]
    """

    def one(leaf: Any) -> Any:
        if not _is_key(leaf):
            return leaf
        shape_alone = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.eval_shape(jax.random.key_data, leaf) if shape_alone else jax.random.key_data(leaf)

    return jax.tree.map(one, tree)


def keys_from_data(tree: PyTree, like: PyTree) -> PyTree:
    """The inverse of `keys_to_data`.

    Args:
      tree: a tree from `keys_to_data`.
      like: the tree with keys, or its shapes.

    Returns:
      The tree, with keys where `like` has them.

    Example:
      >>> like = {"key": jax.random.key(3)}
      >>> bool(keys_from_data(keys_to_data(like), like)["key"] == like["key"])
      True
    """

    def one(leaf: Any, model: Any) -> Any:
        if not _is_key(model):
            return leaf
        # Of a ShapeDtypeStruct, the dtype knows the implementation as well.
        return jax.random.wrap_key_data(leaf, impl=model.dtype._impl.name)

    return jax.tree.map(one, tree, like)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(tree: PyTree) -> PyTree:
    """The tree without keys, and without empty arrays, which Orbax refuses."""
    _leaves(tree)
    return jax.tree.map(lambda leaf: leaf if np.size(leaf) else None, keys_to_data(tree))


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
    named = trees.leaves_with_paths(tree)
    for name, leaf in named:
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(f"{name} is a {type(leaf).__name__}, not an array; checkpoints hold arrays only.")
    return named


def _describe(name: str, leaf: Any, with_checksum: bool) -> dict[str, Any]:
    checksum = _checksum(leaf) if with_checksum else None
    return {"path": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": checksum}


def _checksum(leaf: Any) -> int | None:
    """Of the bytes of an array, where this process holds all of them."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return None
    return zlib.crc32(np.ascontiguousarray(leaf).tobytes())


def _target(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _read_content(checkpointer: Any, path: Path) -> list[dict[str, Any]]:
    try:
        metadata = checkpointer.metadata(path)
        metadata = getattr(metadata, "item_metadata", metadata)
        content = getattr(metadata, "custom_metadata", None)
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint that Orbax can read, or it is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(
            f"{path} was not made by jp.storage.save, or its metadata is damaged; read other checkpoints with the "
            "library that wrote them."
        )
    return content["leaves"]


def _compare(saved: list[dict[str, Any]], wanted: list[dict[str, Any]], path: Path) -> None:
    def form(entry: dict[str, Any] | None) -> str:
        return "nothing" if entry is None else f"{entry['dtype']}{entry['shape']}"

    there, here = ({entry["path"]: entry for entry in entries} for entries in (saved, wanted))
    names = list(dict.fromkeys([*there, *here]))
    wrong = [
        f"{name} (saved: {form(there.get(name))}, asked for: {form(here.get(name))})"
        for name in names
        if form(there.get(name)) != form(here.get(name))
    ]
    if wrong:
        raise ValueError(
            f"the checkpoint {path} holds another tree than was asked for: {trees.list_paths(wrong)}. Restore with the "
            "same model, optimiser, pruner and pack_masks as when it was saved."
        )
