"""Finished parts of a long job, each a JSON file that appears only when it is complete."""

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune.trees import PyTree


class Records:
    """The results of a job by name, in a folder, or in memory alone.

    A folder also says which settings the job has; it refuses to go on with others.

    Args:
      folder: the folder, made if need be; None keeps the results in memory.
      settings: what the whole job depends on; anything that JSON can hold, anything else by its `repr`.

    Raises:
      ValueError: the folder holds a job with other settings.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> Records(folder, {"steps": 5})["dense"] = {"quality": 0.9}
      >>> Records(folder, {"steps": 5}).get("dense")
      {'quality': 0.9}
    """

    def __init__(self, folder: str | Path | None, settings: Mapping[str, Any]):
        self.folder = None if folder is None else Path(folder)
        self._memory: dict[str, Any] = {}
        if self.folder is None:
            return
        current = json.loads(json.dumps(dict(settings), default=repr))
        path = self.folder / "settings.json"
        if path.exists():
            saved = json.loads(path.read_text())
            changed = [name for name in sorted(saved | current) if saved.get(name) != current.get(name)]
            if changed:
                details = "; ".join(f"{name}: {saved.get(name)} then, {current.get(name)} now" for name in changed)
                raise ValueError(
                    f"{self.folder} holds a job with other settings ({details}). Use the same, or another folder."
                )
        write_json(path, current)

    def get(self, name: str) -> Any:
        """The result of a part, or None where it has not finished."""
        if self.folder is None:
            return self._memory.get(name)
        path = self._path(name)
        return json.loads(path.read_text()) if path.exists() else None

    def __setitem__(self, name: str, result: Any) -> None:
        if self.folder is None:
            self._memory[name] = result
        else:
            write_json(self._path(name), result)

    def within(self, name: str) -> Path | None:
        """A folder for the arrays of a part; None in memory."""
        return None if self.folder is None else self.folder / name

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.json"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that the file appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)


def stable_name(value: Any) -> str:
    """A name that does not change from run to run, as the addresses in the `repr` of a function do.

    Example:
      >>> stable_name(lambda path, leaf: True)
      '<function <lambda>>'
    """
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def checksum(tree: PyTree) -> int:
    """A number that other values do not have; of an array that is spread over processes, its shape alone counts.

    Example:
      >>> checksum({"w": np.zeros(2)}) == checksum({"w": np.ones(2)})
      False
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        content = np.ascontiguousarray(leaf).tobytes() if here else str((leaf.shape, leaf.dtype)).encode()
        total = zlib.crc32(content, total)
    return total
