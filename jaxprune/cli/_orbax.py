"""Orbax folders: JSON metadata and TensorStore arrays, restored to the host without a target."""

import contextlib
import dataclasses
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import storage, trees
from jaxprune.cli.checkpoints import Leaf

# Every call of Orbax costs milliseconds, so small leaves are read together, up to so many bytes.
_AT_ONCE = 2**28
_METADATA = "_METADATA"


@dataclasses.dataclass(frozen=True)
class OrbaxFolder:
    """The folder of one pytree; see `Checkpoint`."""

    path: Path
    leaves: tuple[Leaf, ...]
    metadata: dict[str, Any]
    structure: Any
    kind: Literal["orbax"] = "orbax"

    def read(self, leaves: Sequence[Leaf]) -> Iterator[tuple[Leaf, np.ndarray]]:
        """Yields values, up to 256 MiB or one leaf at a time in memory."""
        batch: list[Leaf] = []
        for leaf in leaves:
            if batch and sum(each.nbytes for each in batch) + leaf.nbytes > _AT_ONCE:
                yield from self._restore(batch)
                batch = []
            batch.append(leaf)
        if batch:
            yield from self._restore(batch)

    def tree(self, values: Mapping[str, Any]) -> Any:
        """Values in dictionaries and lists, as they were."""
        return jax.tree.unflatten(self.structure, [values[leaf.path] for leaf in self.leaves])

    def _restore(self, batch: Sequence[Leaf]) -> Iterator[tuple[Leaf, np.ndarray]]:
        import orbax.checkpoint as ocp

        asked = {leaf.path for leaf in batch}
        values = {leaf.path: jnp.nan if leaf.path in asked else ocp.PLACEHOLDER for leaf in self.leaves}
        forms = {
            leaf.path: ocp.RestoreArgs(restore_type=None if leaf.form == "text" else np.ndarray) for leaf in self.leaves
        }
        arguments = ocp.args.PyTreeRestore(item=self.tree(values), restore_args=self.tree(forms))
        try:
            with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
                restored = jax.tree.leaves(checkpointer.restore(self.path, args=arguments))
        except Exception as error:  # Orbax and TensorStore raise many kinds.
            raise ValueError(f"{self.path} is damaged, its arrays cannot be read: {error}") from error
        found = dict(zip((leaf.path for leaf in self.leaves), restored, strict=True))
        for leaf in batch:
            array = np.asarray(found[leaf.path])
            self._check(leaf, array)
            yield leaf, array

    def _check(self, leaf: Leaf, array: np.ndarray) -> None:
        """Compares with the checksum that `jp.storage.save` left: TensorStore does not notice every damaged byte."""
        if leaf.form == "array" and (array.shape, str(array.dtype)) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"{self.path} is damaged: {leaf.path} came back as {array.dtype}{list(array.shape)}, its metadata says "
                f"{leaf.dtype}{list(leaf.shape)}."
            )
        for entry in self.metadata.get("leaves", []) if self.metadata.get("format") == "jaxprune" else []:
            if entry["path"] == leaf.path and entry["checksum"] not in (None, zlib.crc32(array.tobytes())):
                raise ValueError(f"{self.path} is damaged: other bytes than were saved came back for {leaf.path}.")


def open_orbax(path: Path) -> OrbaxFolder:
    """Reads the metadata of a folder; of a folder of steps or items, those of the last step's only tree.

    Args:
      path: the folder.

    Returns:
      The open checkpoint.

    Raises:
      ValueError: no folder of Orbax, a damaged one, or one with several trees.
    """
    import orbax.checkpoint as ocp

    path = _folder_of_tree(path.resolve())
    try:
        with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            content: Any = checkpointer.metadata(path)
            content = getattr(content, "item_metadata", content)
            named, structure = trees.leaves_with_paths(content.tree), jax.tree.structure(content.tree)
            leaves = tuple(_leaf(name, leaf) for name, leaf in named)
            metadata = getattr(content, "custom_metadata", None) or {}
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint that Orbax can read, or it is damaged: {error}") from error
    return OrbaxFolder(path, leaves, dict(metadata), structure)


def write_orbax(out: Path, tree: Any, metadata: Mapping[str, Any], *, overwrite: bool) -> None:
    """Writes a folder that both `StandardCheckpointer` and, if it held arrays alone, `jp.storage.restore` read.

    Args:
      out: the folder.
      tree: arrays, numbers and strings in dictionaries and lists.
      metadata: what the source had for its users; checksums of `jp.storage` are made anew.
      overwrite: replace what is there.

    Raises:
      ValueError: Orbax cannot store it.
    """
    import orbax.checkpoint as ocp

    foreign = metadata.get("format") != "jaxprune" and bool(metadata)
    try:
        with _quiet():
            if not foreign and all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(tree)):
                storage.save(out, tree, overwrite=overwrite)
                return
            # The standard handler reads what this writes, and refuses to write text.
            with ocp.PyTreeCheckpointer() as checkpointer:
                arguments = ocp.args.PyTreeSave(tree, custom_metadata=dict(metadata) or None)
                checkpointer.save(out, args=arguments, force=overwrite)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{out} cannot be written: {error}") from error


def _leaf(path: str, metadata: Any) -> Leaf:
    kind = type(metadata).__name__
    if kind == "StringMetadata":
        return Leaf(path, (), "text", "text")
    return Leaf(
        path, tuple(metadata.shape), str(np.dtype(metadata.dtype)), "number" if kind == "ScalarMetadata" else "array"
    )


def _folder_of_tree(path: Path) -> Path:
    """Goes down a folder of steps (the last) and of items (the only one that holds a tree)."""
    if (path / _METADATA).is_file():
        return path
    steps = [(int(name[-1]), folder) for folder in path.iterdir() if (name := folder.name.split("_"))[-1].isdecimal()]
    if steps and not (path / "_CHECKPOINT_METADATA").is_file():
        return _folder_of_tree(max(steps)[1])
    items = sorted(folder for folder in path.iterdir() if (folder / _METADATA).is_file())
    if len(items) == 1:
        return items[0]
    if items:
        names = ", ".join(str(folder) for folder in items)
        raise ValueError(f"{path} holds several trees; give one of them: {names}.")
    raise ValueError(
        f"{path} is no Orbax checkpoint: neither it nor a step or item in it has a file {_METADATA}. Of a model in "
        "several safetensors files, give one file."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's remarks about checkpoints that are whole but written some other way."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
