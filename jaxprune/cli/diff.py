"""`jaxprune diff`: which leaves of two checkpoints differ, by how much, and what happened to their zeros."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxprune.cli import show
from jaxprune.cli.checkpoints import Leaf, open_checkpoint
from jaxprune.cli.inspect import chosen_leaves

# Differences are taken in float64, so many entries at a time.
_CHUNK = 2**20

Status = Literal["same", "values", "dtype", "shape", "only in A", "only in B"]


@dataclasses.dataclass(frozen=True)
class Change:
    """One leaf of two checkpoints.

    Attributes:
      path: its name; where formats differ, with `/` in place of `.`.
      status: the same (NaN equals NaN, -0.0 equals 0.0), other values, the dtype differs, the shape differs, or it is
        in one of them alone.
      a: its dtype and shape in A.
      b: and in B.
      entries: how many entries were compared.
      changed: how many of them differ.
      kept: how many are nonzero in both.
      lost: how many are nonzero in A and zero in B.
      grown: how many are zero in A and nonzero in B.
      norm: $|B - A|_2$; NaN with a NaN that is not in both.
      norm_a: $|A|_2$.
      largest: the largest absolute difference.
    """

    path: str
    status: Status
    a: str | None = None
    b: str | None = None
    entries: int = 0
    changed: int = 0
    kept: int = 0
    lost: int = 0
    grown: int = 0
    norm: float = 0.0
    norm_a: float = 0.0
    largest: float = 0.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two checkpoints, leaf by leaf.

    Attributes:
      a: the path of the first.
      b: the path of the second.
      changes: one a leaf of either.
    """

    a: str
    b: str
    changes: tuple[Change, ...]

    @property
    def same(self) -> bool:
        """Whether both have the same leaves with the same values, dtypes and shapes."""
        return all(change.status == "same" for change in self.changes)

    def total(self) -> dict[str, Any]:
        """Sums over the leaves that were compared, and how many leaves have each status."""
        total: dict[str, Any] = {
            name: sum(getattr(change, name) for change in self.changes)
            for name in ("entries", "changed", "kept", "lost", "grown")
        }
        for name in ("norm", "norm_a"):
            total[name] = math.sqrt(sum(getattr(change, name) ** 2 for change in self.changes))
        statuses = [change.status for change in self.changes]
        return total | {"leaves": {status: statuses.count(status) for status in dict.fromkeys(statuses)}}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "leaves": [dataclasses.asdict(change) for change in self.changes],
            "total": self.total(),
        }

    def print(self, *, everything: bool = False) -> None:
        """A table of the leaves that differ, or of all, to standard output."""
        header = ("leaf", "changed", "kept", "lost", "grown", "|B-A|", "|B-A|/|A|", "largest", "what differs")
        shown = [change for change in self.changes if everything or change.status != "same"]
        total = self.total()
        rows = [(change.path, *_cells(dataclasses.asdict(change)), _words(change)) for change in shown]
        counts = ", ".join(f"{count} {status}" for status, count in total["leaves"].items())
        show.print_table(f"A: {self.a}   B: {self.b}", header, rows, [("all compared", *_cells(total), counts)])
        print("A and B are the same." if self.same else "A and B differ.")


def diff_checkpoints(
    a: str | Path, b: str | Path, *, where: str | Sequence[str] | None = None, quiet: bool = True
) -> Comparison:
    """Compares two checkpoints leaf by leaf.

    Leaves are matched by name. Between an Orbax folder and a safetensors file `.` and `/` count as alike. Norms are
    taken in float64. Leaves of one shape and different dtypes are compared by value as well.

    Args:
      a: a safetensors file or an Orbax folder.
      b: another, of either format.
      where: regular expressions over whole paths: compare only these leaves; None takes all.
      quiet: no progress bar.

    Returns:
      The comparison.

    Raises:
      FileNotFoundError: there is nothing at a path.
      ValueError: one of them cannot be read, or `where` matches nothing in either.

    Example:
      >>> import tempfile, jax.numpy as jnp, jaxprune as jp
      >>> folder = tempfile.mkdtemp()
      >>> jp.storage.save(folder + "/a", {"w": jnp.array([1.0, 2.0, 0.0])})
      >>> jp.storage.save(folder + "/b", {"w": jnp.array([1.0, 0.0, 0.0])})
      >>> change = diff_checkpoints(folder + "/a", folder + "/b").changes[0]
      >>> change.kept, change.lost, change.grown, change.norm
      (1, 1, 0, 2.0)
    """
    first, second = open_checkpoint(a), open_checkpoint(b)
    alike = first.kind != second.kind
    sides: list[dict[str, Leaf]] = []
    problems = []
    for checkpoint in (first, second):
        try:
            leaves = chosen_leaves(checkpoint, where)
        except ValueError as error:
            problems.append(error)
            leaves = []
        named = {leaf.path.replace(".", "/") if alike else leaf.path: leaf for leaf in leaves}
        if len(named) < len(leaves):
            raise ValueError(f"{checkpoint.path}: with `.` and `/` taken as alike, two leaves have one name.")
        sides.append(named)
    if len(problems) == 2:
        raise problems[0]
    left, right = sides
    changes: dict[str, Change] = {}
    for path in dict.fromkeys([*left, *right]):
        one, two = left.get(path), right.get(path)
        status: Status = "only in A" if two is None else "only in B" if one is None else "shape"
        changes[path] = Change(path, status, _form(one), _form(two))
    pairs = [(path, leaf, right[path]) for path, leaf in left.items() if path in right]
    pairs = [(path, one, two) for path, one, two in pairs if one.shape == two.shape]
    with show.progress("diff", sum(one.nbytes + two.nbytes for _, one, two in pairs), quiet=quiet) as advance:
        arrays_a, arrays_b = first.read([one for _, one, _ in pairs]), second.read([two for _, _, two in pairs])
        for (path, one, two), (_, array_a), (_, array_b) in zip(pairs, arrays_a, arrays_b, strict=True):
            changes[path] = _compare(changes[path], array_a, array_b, one.dtype == two.dtype)
            advance(one.nbytes + two.nbytes)
    return Comparison(str(first.path), str(second.path), tuple(changes.values()))


def _compare(change: Change, a: np.ndarray, b: np.ndarray, same_dtype: bool) -> Change:
    if "U" in (a.dtype.kind, b.dtype.kind):
        status: Status = "dtype" if not same_dtype else "same" if np.array_equal(a, b) else "values"
        return dataclasses.replace(change, status=status, entries=1, changed=int(status != "same"))
    counts = np.zeros(4, np.int64)
    squares, squares_a, largest = 0.0, 0.0, 0.0
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    for start in range(0, flat_a.size, _CHUNK):
        x, y = (_wide(flat[start : start + _CHUNK]) for flat in (flat_a, flat_b))
        same = (x == y) | ((x != x) & (y != y))
        counts += [
            np.count_nonzero(part) for part in (~same, (x != 0) & (y != 0), (x != 0) & (y == 0), (x == 0) & (y != 0))
        ]
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(np.where(same, 0, y) - np.where(same, 0, x))
            squares += float(np.sum(np.square(apart)))
            squares_a += float(np.sum(np.square(np.abs(x))))
        largest = float(np.maximum(largest, np.max(apart, initial=0.0)))  # unlike max, it keeps NaN
    status = "dtype" if not same_dtype else "values" if counts[0] else "same"
    changed, kept, lost, grown = counts.tolist()
    return dataclasses.replace(
        change,
        status=status,
        entries=a.size,
        changed=changed,
        kept=kept,
        lost=lost,
        grown=grown,
        norm=math.sqrt(squares),
        norm_a=math.sqrt(squares_a),
        largest=largest,
    )


def _wide(array: np.ndarray) -> np.ndarray:
    """Numbers of which differences are exact enough; 64-bit integers beyond 2**53 as extended floats."""
    if array.dtype.kind == "c":
        return array.astype(np.complex128)
    return array.astype(np.longdouble if array.dtype in (np.int64, np.uint64) else np.float64)


def _form(leaf: Leaf | None) -> str | None:
    return None if leaf is None else f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _cells(values: dict[str, Any]) -> tuple[str, ...]:
    if not values["entries"]:
        return ("",) * 7
    relative = f"{values['norm'] / values['norm_a']:.3g}" if values["norm_a"] else ""
    largest = f"{values['largest']:.3g}" if "largest" in values else ""
    return (
        *(f"{values[name]:,}" for name in ("changed", "kept", "lost", "grown")),
        f"{values['norm']:.3g}",
        relative,
        largest,
    )


def _words(change: Change) -> str:
    if change.status in ("dtype", "shape"):
        return f"{change.status}: {change.a} in A, {change.b} in B"
    if change.status.startswith("only"):
        return f"{change.status}: {change.a or change.b}"
    return change.status
