"""`jaxprune prune`: masks from the weights alone, applied to a checkpoint and written as another one."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import allocation, scores, trees
from jaxprune.cli import show
from jaxprune.cli.checkpoints import Checkpoint, Leaf, check_output, open_checkpoint, weights, write_checkpoint
from jaxprune.compute import compute_masks
from jaxprune.masks import apply_masks
from jaxprune.structures import NM, Block, Channel, Structure, Unstructured
from jaxprune.summary import Summary, summary

SCORES = {"magnitude": scores.magnitude, "lamp": scores.lamp, "random": scores.random}
"""The scores that need nothing but the weights."""

ALLOCATIONS = {
    "uniform": allocation.uniform,
    "erk": allocation.erk,
    "global": allocation.global_,
    "global-normalized": allocation.global_normalized,
    "lamp": allocation.lamp,
}
"""How a sparsity is shared between layers."""


@dataclasses.dataclass(frozen=True)
class PrunedCheckpoint:
    """What was pruned and what not.

    Attributes:
      path: the checkpoint that was read.
      out: the one that was written.
      settings: what was asked for, with defaults filled in.
      table: counts by leaf and in total.
      left: for each leaf that is not pruned, why.
      zeros: fraction of zeros in the result, over all numbers of the checkpoint.
    """

    path: str
    out: str
    settings: Mapping[str, Any]
    table: Summary
    left: Mapping[str, str]
    zeros: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary; bytes packed are theoretical, the rest is counted."""
        return {
            "checkpoint": self.path,
            "out": self.out,
            "settings": dict(self.settings),
            "leaves": [dataclasses.asdict(row) | {"left": self.left.get(row.path)} for row in self.table.rows],
            "pruned": dataclasses.asdict(self.table.pruned),
            "total": dataclasses.asdict(self.table.total),
            "sparsity_of_the_values": self.zeros,
            "notes": {"packed_bytes": "theoretical: kept values and one bit a weight"},
        }

    def print(self) -> None:
        """The table of `jp.summary`, and why leaves were left alone."""
        header = (
            "leaf",
            "shape",
            "structure",
            "sparsity",
            "kept",
            "of",
            "bytes",
            "packed (theoretical)",
            "left because",
        )

        def cells(row: Any) -> tuple[str, ...]:
            shape = show.shape_text(row.shape) if row.shape else ""
            counts = (f"{n:,}" for n in (row.kept, row.weights, row.dense_bytes, row.packed_bytes))
            return (row.path, shape, row.structure, show.percent(row.sparsity), *counts, self.left.get(row.path, ""))

        totals = [cells(self.table.pruned), cells(self.table.total)]
        show.print_table(f"{self.path} -> {self.out}", header, map(cells, self.table.rows), totals)
        print(", ".join(f"{name} {value}" for name, value in self.settings.items() if value is not None))
        print(f"zeros among all numbers written: {show.percent(self.zeros)}")


def prune_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    sparsity: float | None = None,
    structure: str = "unstructured",
    axis: int | None = None,
    score: str = "magnitude",
    allocation: str = "uniform",
    where: Sequence[str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = True,
) -> PrunedCheckpoint:
    """Prunes the weights of a checkpoint by `compute_masks`, and writes the rest as it was.

    The whole checkpoint is held in memory, about three times where it is pruned. Everything runs on the CPU. Typed PRNG
    keys in an Orbax folder come out as their integers (`jax.random.wrap_key_data` makes keys of them).

    Args:
      path: a safetensors file or an Orbax folder.
      out: where to write; a safetensors file where it ends in `.safetensors`, else an Orbax folder.
      sparsity: fraction of zeros over all leaves that are pruned; None with N:M, whose pattern fixes it.
      structure: `unstructured`, `N:M` (kept of every M), `block:RxC` or `channel`.
      axis: of N:M the axis that is summed over, of `channel` that of the channels. None takes 1 and 0 in safetensors
        files that PyTorch wrote (`format: pt` in the header; weights are (out, in, ...)), else -2 and -1, as in Flax
        kernels (..., in, out).
      score: one of `SCORES`.
      allocation: one of `ALLOCATIONS`.
      where: regular expressions over whole paths. None takes the floating leaves with two axes or more: those below
        `params` where there is such a key, else those that are not below `opt_state`, `optimizer` or `opt`.
      seed: of random scores.
      overwrite: replace a checkpoint that is at `out`.
      quiet: no progress bar.

    Returns:
      What was done.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: an argument out of range, nothing to prune, or `out` must not be written.

    Example:
      >>> import tempfile, jax.numpy as jnp, jaxprune as jp
      >>> folder = tempfile.mkdtemp()
      >>> jp.storage.save(folder + "/a", {"w": jnp.array([[1.0, 3.0], [2.0, 4.0]]), "b": jnp.ones(2)})
      >>> made = prune_checkpoint(folder + "/a", folder + "/b", sparsity=0.5)
      >>> made.table.pruned.kept, made.left
      (2, {'b': 'fewer than two axes'})
      >>> jp.storage.restore(folder + "/b", {"w": jnp.ones((2, 2)), "b": jnp.ones(2)})["w"].tolist()
      [[0.0, 3.0], [0.0, 4.0]]
    """
    form = parse_structure(structure)
    if axis is not None and not isinstance(form, (NM, Channel)):
        raise ValueError(f"--axis {axis} with --structure {structure}: only N:M and channel have an axis.")
    for name, value, allowed in (("score", score, SCORES), ("allocation", allocation, ALLOCATIONS)):
        if value not in allowed:
            raise ValueError(f"--{name} {value}: allowed are {', '.join(allowed)}.")
    if sparsity is None and not isinstance(form, NM):
        raise ValueError(f"--sparsity is needed with --structure {structure}; only N:M fixes it by itself.")
    checkpoint = open_checkpoint(path)
    out = check_output(out, [Path(path), checkpoint.path], overwrite=overwrite)
    form = _along(form, axis, checkpoint)

    values: dict[str, np.ndarray] = {}
    with show.progress("read", sum(leaf.nbytes for leaf in checkpoint.leaves), quiet=quiet) as advance:
        for leaf, array in checkpoint.read(checkpoint.leaves):
            values[leaf.path] = array
            advance(leaf.nbytes)
    numbers = {leaf.path: values[leaf.path] for leaf in checkpoint.leaves if leaf.form != "text"}
    chosen = _where(checkpoint, where, numbers)
    left = {leaf.path: _reason(leaf, where) for leaf in checkpoint.leaves if not chosen.get(leaf.path)}
    settings = {
        "sparsity": form.sparsity if isinstance(form, NM) else sparsity,
        "structure": structure,
        "axis": form.axis if isinstance(form, (NM, Channel)) else None,
        "score": score,
        "allocation": None if isinstance(form, NM) else allocation,
        "seed": seed if score == "random" else None,
    }
    masks = _masks(numbers, chosen, sparsity, score=score, form=form, allocation=allocation, seed=seed)
    table = summary(numbers, masks, where=chosen, structure=form)
    for row in table.rows:
        if chosen[row.path] and isinstance(form, NM) and row.kept == row.weights:
            left[row.path] = f"axis {form.axis} has fewer than {form.m} entries"
    pruned = _apply(numbers, masks, chosen)
    nonzero = sum(int(np.count_nonzero(array)) for array in pruned.values())
    written = {leaf.path: _as_read(leaf, (values | pruned)[leaf.path]) for leaf in checkpoint.leaves}
    write_checkpoint(out, checkpoint, written, overwrite=overwrite)
    return PrunedCheckpoint(
        str(checkpoint.path), str(out), settings, table, left, 1 - nonzero / max(table.total.weights, 1)
    )


def parse_structure(text: str) -> Structure:
    """Reads `unstructured`, `N:M`, `block:RxC` or `channel`.

    Args:
      text: what the user wrote.

    Returns:
      The structure.

    Raises:
      ValueError: none of these.

    Example:
      >>> parse_structure("2:4"), parse_structure("block:32x32").shape
      (NM(n=2, m=4, axis=None, strict=False), (32, 32))
    """
    kind, _, rest = text.partition(":")
    if text == "unstructured":
        return Unstructured()
    if text == "channel":
        return Channel()
    sides = rest.split("x") if kind == "block" else text.split(":")
    if len(sides) == 2 and all(side.isascii() and side.isdecimal() for side in sides):
        first, second = map(int, sides)
        return Block((first, second)) if kind == "block" else NM(first, second)
    raise ValueError(
        f"--structure {text}: allowed are unstructured, N:M such as 2:4 (2 kept of every 4), block:RxC such as "
        "block:32x32, and channel."
    )


def _along(form: Structure, axis: int | None, checkpoint: Checkpoint) -> Structure:
    """The axis that was asked for, or that of the framework that wrote the file."""
    torch = checkpoint.kind == "safetensors" and checkpoint.metadata.get("format") == "pt"
    if isinstance(form, NM):
        return dataclasses.replace(form, axis=axis if axis is not None else 1 if torch else -2)
    if isinstance(form, Channel):
        return Channel(axis if axis is not None else 0 if torch else -1)
    return form


def _where(checkpoint: Checkpoint, where: Sequence[str] | None, numbers: Mapping[str, np.ndarray]) -> dict[str, bool]:
    if not where:
        default = weights(checkpoint.leaves)
        if not default:
            raise ValueError(f"{checkpoint.path} has no floating leaf with two axes or more; choose some with --where.")
        return {path: path in default for path in numbers}
    chosen = trees.resolve_where(list(where), dict(numbers))
    scalars = [leaf.path for leaf in checkpoint.leaves if chosen.get(leaf.path) and not leaf.shape]
    if scalars:
        raise ValueError(f"--where {' '.join(where)} matches the scalar {scalars[0]}; leave it out.")
    return chosen


def _reason(leaf: Leaf, where: Sequence[str] | None) -> str:
    if leaf.form != "array":
        return f"a {leaf.form}, not an array" if leaf.form == "number" else "text"
    if not leaf.is_floating:
        return f"{leaf.dtype}, not floating"
    if where:
        return "--where leaves it out"
    return "fewer than two axes" if len(leaf.shape) < 2 else "not a parameter (name it with --where)"


def _masks(
    numbers: Mapping[str, np.ndarray],
    chosen: dict[str, bool],
    sparsity: float | None,
    *,
    score: str,
    form: Structure,
    allocation: str,
    seed: int,
) -> dict[str, Any]:
    """The masks of the leaves that are chosen; the scalar True for the others, which JAX never sees."""
    # 8-bit floats lack most operations; in float32 they are exact.
    picked = {
        path: array.astype(np.float32) if array.dtype.itemsize == 1 else array
        for path, array in numbers.items()
        if chosen[path]
    }
    with _on_the_host(picked):
        masks = compute_masks(
            picked,
            sparsity,
            score=SCORES[score],
            structure=form,
            allocation=ALLOCATIONS[allocation],
            where=dict.fromkeys(picked, True),
            key=jax.random.key(seed),
        )
    return {path: masks[path] if chosen[path] else True for path in numbers}


def _apply(numbers: Mapping[str, np.ndarray], masks: Mapping[str, Any], chosen: Mapping[str, bool]) -> dict[str, Any]:
    """The numbers with the chosen ones pruned, on the host."""
    result: dict[str, Any] = dict(numbers)
    for path in numbers:
        if chosen[path]:
            with _on_the_host({path: numbers[path]}):
                result[path] = np.asarray(apply_masks(numbers[path], masks[path]))
    return result


@contextlib.contextmanager
def _on_the_host(arrays: Mapping[str, np.ndarray]) -> Iterator[None]:
    """JAX on the CPU, and in 64 bits where an array has them."""
    wide = any(array.dtype.itemsize > 4 for array in arrays.values())
    try:
        device = jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS allows none
        device = jax.devices()[0]
    with jax.default_device(device), jax.enable_x64(wide or jax.config.read("jax_enable_x64")):
        yield


def _as_read(leaf: Leaf, array: Any) -> Any:
    """Python numbers and strings again where the checkpoint has them."""
    return array if leaf.form == "array" else np.asarray(array).item()
