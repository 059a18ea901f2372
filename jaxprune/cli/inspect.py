"""`jaxprune inspect`: how sparse a checkpoint is, what it weighs, and what structure its zeros have."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxprune import trees
from jaxprune.cli import show
from jaxprune.cli.checkpoints import Checkpoint, Leaf, open_checkpoint, weights
from jaxprune.patterns import Found, find_structure


@dataclasses.dataclass(frozen=True)
class Row:
    """One leaf.

    Attributes:
      leaf: its name, shape and dtype.
      is_weight: whether `jaxprune prune` would prune it without --where.
      found: its zeros.
      dense_bytes: bytes of all its values.
      packed_bytes: bytes of the values that are not zero and one bit an entry (theoretical); the dense bytes where that
        is less.
    """

    leaf: Leaf
    is_weight: bool
    found: Found
    dense_bytes: int
    packed_bytes: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What is in a checkpoint.

    Attributes:
      path: the file or folder that was read.
      kind: its format.
      rows: one a leaf that holds numbers.
      text: the leaves that hold text.
    """

    path: str
    kind: str
    rows: tuple[Row, ...]
    text: tuple[str, ...]

    def total(self, *, weights_only: bool) -> dict[str, Any]:
        """Sums over all leaves, or over the weights alone."""
        rows = [row for row in self.rows if row.is_weight or not weights_only]
        entries, zeros = sum(row.leaf.size for row in rows), sum(row.found.zeros for row in rows)
        return {
            "leaves": len(rows),
            "entries": entries,
            "zeros": zeros,
            "sparsity": zeros / entries if entries else 0.0,
            "dense_bytes": sum(row.dense_bytes for row in rows),
            "packed_bytes": sum(row.packed_bytes for row in rows),
        }

    def structures(self) -> dict[str, int]:
        """How many of the weights have each structure."""
        kinds: Counter[str] = Counter()
        for row in self.rows:
            if row.is_weight:
                kinds.update(_kinds(row.found))
        return dict(kinds.most_common())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary; bytes packed are theoretical, the rest is counted."""
        leaves = [
            {
                "path": row.leaf.path,
                "shape": row.leaf.shape,
                "dtype": row.leaf.dtype,
                "is_weight": row.is_weight,
                "entries": row.leaf.size,
                "zeros": row.found.zeros,
                "sparsity": row.found.sparsity,
                "dense_bytes": row.dense_bytes,
                "packed_bytes": row.packed_bytes,
                "structure": row.found.to_dict(),
            }
            for row in self.rows
        ]
        return {
            "checkpoint": self.path,
            "format": self.kind,
            "leaves": leaves,
            "text": self.text,
            "weights": self.total(weights_only=True),
            "total": self.total(weights_only=False),
            "structures": self.structures(),
            "notes": {"packed_bytes": "theoretical: nonzero values and one bit an entry, dense where that is less"},
        }

    def print(self) -> None:
        """A table to standard output."""
        header = ("leaf", "shape", "dtype", "zeros", "bytes", "packed (theoretical)", "structure")
        rows = [
            (
                row.leaf.path,
                show.shape_text(row.leaf.shape),
                row.leaf.dtype,
                show.percent(row.found.sparsity),
                f"{row.dense_bytes:,}",
                f"{row.packed_bytes:,}",
                str(row.found),
            )
            for row in self.rows
        ]
        totals = []
        for name, weights_only in (("weights (pruned by default)", True), ("all leaves", False)):
            total = self.total(weights_only=weights_only)
            sizes = (f"{total['entries']:,}", "", show.percent(total["sparsity"]))
            totals.append((name, *sizes, f"{total['dense_bytes']:,}", f"{total['packed_bytes']:,}", ""))
        show.print_table(f"{self.path} ({self.kind})", header, rows, totals)
        for kind, count in self.structures().items():
            print(f"{count} of {self.total(weights_only=True)['leaves']} weights: {kind}")
        if self.text:
            print(f"text, not looked at: {show.printable(trees.list_paths(self.text))}")


def inspect_checkpoint(path: str | Path, *, where: str | Sequence[str] | None = None, quiet: bool = True) -> Inspection:
    """Reads a checkpoint leaf by leaf and describes its zeros.

    Args:
      path: a safetensors file or an Orbax folder.
      where: regular expressions over whole paths: look only at these leaves; None takes all.
      quiet: no progress bar.

    Returns:
      What was found; see `jaxprune.patterns` for when a structure is claimed.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: it cannot be read, or `where` matches nothing.

    Example:
      >>> import tempfile, jax.numpy as jnp, jaxprune as jp
      >>> folder = tempfile.mkdtemp() + "/params"
      >>> jp.storage.save(folder, {"kernel": jnp.eye(64)})
      >>> row = inspect_checkpoint(folder).rows[0]
      >>> row.found.zeros, row.dense_bytes, row.packed_bytes
      (4032, 16384, 768)
    """
    checkpoint = open_checkpoint(path)
    leaves = chosen_leaves(checkpoint, where)
    pruned_by_default = weights(checkpoint.leaves)
    rows = []
    with show.progress("inspect", sum(leaf.nbytes for leaf in leaves), quiet=quiet) as advance:
        for leaf, array in checkpoint.read([leaf for leaf in leaves if leaf.form != "text"]):
            found = find_structure(array)
            packed = (leaf.size - found.zeros) * array.dtype.itemsize + -(-leaf.size // 8)
            rows.append(Row(leaf, leaf.path in pruned_by_default, found, leaf.nbytes, min(packed, leaf.nbytes)))
            advance(leaf.nbytes)
    text = tuple(leaf.path for leaf in leaves if leaf.form == "text")
    return Inspection(str(checkpoint.path), checkpoint.kind, tuple(rows), text)


def chosen_leaves(checkpoint: Checkpoint, where: str | Sequence[str] | None) -> list[Leaf]:
    """The leaves of which the path matches; all for None.

    Raises:
      ValueError: none matches.
    """
    if where is None:
        return list(checkpoint.leaves)
    paths = [leaf.path for leaf in checkpoint.leaves]
    patterns = [trees.compile_pattern(each) for each in ([where] if isinstance(where, str) else where)]
    flags = [any(pattern.fullmatch(path) for pattern in patterns) for path in paths]
    if not any(flags):
        raise ValueError(f"--where {where} matches no whole path; the paths are: {trees.list_paths(paths)}.")
    return [leaf for leaf, flag in zip(checkpoint.leaves, flags, strict=True) if flag]


def _kinds(found: Found) -> list[str]:
    """The structures of one array without its counts, so that they can be counted over arrays."""
    if not found.zeros or found.zeros == found.size:
        return [str(found)]
    kinds = [str(pattern) for pattern in found.groups]
    if found.tiles is not None:
        kinds.append("blocks {}x{}".format(*found.tiles.shape))
    kinds += [f"dead slices along axis {dead.axis}" for dead in found.dead if dead.beyond_chance]
    return kinds or ["unstructured"]
