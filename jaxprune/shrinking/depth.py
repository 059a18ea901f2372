"""Depth: whole residual blocks that can be left out.

A block that adds little to the residual stream can be skipped. `influence` and `loss_changes` score the blocks of a
model, `remove` takes some away from any tree (parameters, optimiser state, masks), `prune` does both until a budget is
met. Blocks may be a list, a dict, numbered entries among others, or stacked along the leading axis for a scan; the
function must read their number from the parameters.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _sharding, trees
from jaxprune.trees import PyTree

__all__ = ["count", "influence", "loss_changes", "prune", "remove"]

Block = Callable[[PyTree, jax.Array], jax.Array]


def count(params: PyTree, path: str, *, stacked: bool = False) -> int:
    """How many blocks there are.

    Args:
      params: the parameters.
      path: where the blocks are: `"layers"` of a list, tuple or dict of blocks, or of a stacked tree;
        `"encoder/layer_{}"` where numbered entries stand among others. It may occur several times where the blocks are
        the same: in the collections of Linen, `params` and `batch_stats`.
      stacked: whether the blocks are stacked along the leading axis of every leaf under the path.

    Raises:
      ValueError: there are no blocks at the path.

    Example:
      >>> count({"layers": [{"w": 1.0}, {"w": 2.0}], "head": 3.0}, "layers")
      2
    """
    return len(_find(params, path, stacked)[1])


def influence(block: Block, params: PyTree, path: str, x: jax.Array, *, stacked: bool = False) -> jax.Array:
    r"""How much each block turns the residual stream: $1 - \mathbb{E}\,\cos(x_l, x_{l+1})$ over all positions.

    Args:
      block: `(block_params, x) -> x`, one block with its skip connection.
      params: the parameters.
      path: where the blocks are, as for `count`.
      x: what enters the first block, (..., features).
      stacked: as for `count`.

    Returns:
      float32[blocks]; the lowest can go first.

    Example:
      >>> blocks = {"layers": [{"w": jnp.zeros((2, 2))}, {"w": jnp.eye(2)[::-1]}]}
      >>> influence(lambda p, x: x + x @ p["w"], blocks, "layers", jnp.array([[1.0, 0.0]])).round(2)
      Array([0.  , 0.29], dtype=float32)

    References:
      Men et al. 2024 (ShortGPT), arXiv 2403.03853.
    """
    scores = []
    for part in _blocks(params, path, stacked):
        y = block(part, x)
        one, two = x.astype(jnp.float32), y.astype(jnp.float32)
        lengths = jnp.linalg.norm(one, axis=-1) * jnp.linalg.norm(two, axis=-1)
        scores.append(1 - jnp.mean(jnp.sum(one * two, -1) / jnp.maximum(lengths, 1e-12)))
        x = y
    return jnp.stack(scores)


def loss_changes(
    loss: Callable[[PyTree], jax.Array], params: PyTree, path: str, *, stacked: bool = False
) -> np.ndarray:
    """How much the loss rises when a block is left out, for each block by itself.

    Args:
      loss: the loss of parameters with any number of blocks.
      params: the parameters.
      path: where the blocks are, as for `count`.
      stacked: as for `count`.

    Returns:
      float64[blocks].

    Example:
      >>> def loss(p):
      ...     return sum(p["layers"])
      >>> loss_changes(loss, {"layers": [1.0, -2.0, 3.0]}, "layers").tolist()
      [-1.0, 2.0, -3.0]
    """
    whole = float(loss(params))
    blocks = count(params, path, stacked=stacked)
    return np.array([float(loss(remove(params, path, [k], stacked=stacked))) - whole for k in range(blocks)])


def remove(tree: PyTree, path: str, blocks: Iterable[int], *, stacked: bool = False) -> PyTree:
    """Takes blocks away, wherever the path occurs in a tree: in parameters, and in the state of their optimiser.

    Args:
      tree: any pytree.
      path: where the blocks are, as for `count`; also as the end of longer paths, as in an optimiser's state.
      blocks: which ones go, by position. Numbered names are numbered anew.
      stacked: as for `count`.

    Returns:
      The tree without them.

    Raises:
      ValueError: there are no blocks at the path, no such block, or none would be left; the path stands for different
        blocks, or is one into `params` where other collections (`batch_stats`) hold the same blocks.

    Example:
      >>> remove({"layers": [1.0, 2.0, 3.0], "head": 4.0}, "layers", [1])
      {'head': 4.0, 'layers': [1.0, 3.0]}
      >>> remove({"layer_0": 1.0, "layer_1": 2.0, "head": 4.0}, "layer_{}", [0])
      {'head': 4.0, 'layer_0': 2.0}
      >>> remove({"layers": {"w": jnp.arange(3)}}, "layers", [0], stacked=True)["layers"]["w"].tolist()
      [1, 2]
    """
    found, names = _containers(tree, path, stacked)
    gone = sorted(set(blocks))
    _check_nothing_beside(tree, path, stacked)

    def cut(keys: Sequence[Any], node: Any) -> Any:
        return _cut(node, path, names, gone, stacked) if trees.path_string(keys) in found else node

    return jax.tree_util.tree_map_with_path(
        cut, tree, is_leaf=lambda keys, node: trees.path_string(keys) in found, is_leaf_takes_path=True
    )


def prune(
    scores: Callable[[PyTree], Any],
    params: PyTree,
    path: str,
    *,
    keep: int | None = None,
    params_share: float | None = None,
    stacked: bool = False,
) -> tuple[PyTree, list[int]]:
    """Removes the block of lowest score, scores anew, and so on, until a budget is met.

    Args:
      scores: scores the blocks of parameters, such as `lambda p: loss_changes(loss, p, "layers")`.
      params: the parameters.
      path: where the blocks are, as for `count`.
      keep: how many blocks stay.
      params_share: the share of parameters that may stay, in (0, 1].
      stacked: as for `count`.

    Returns:
      The smaller parameters, and the blocks that were removed, in that order, by their positions in `params`.

    Raises:
      ValueError: not one of `keep` and `params_share` is given, or the budget cannot be met.

    Example:
      >>> prune(lambda p: p["layers"], {"layers": [3.0, 1.0, 2.0]}, "layers", keep=1)
      ({'layers': [3.0]}, [1, 2])
    """
    blocks = count(params, path, stacked=stacked)
    if (keep is None) == (params_share is None):
        raise ValueError("give one of keep= (blocks) and params_share= (the share of parameters that may stay).")
    if keep is not None and not 1 <= keep <= blocks:
        raise ValueError(f"keep={keep}; there are {blocks} blocks, of which 1 to {blocks} can stay.")
    if params_share is not None and not 0 < params_share <= 1:
        raise ValueError(f"params_share={params_share}; it is the share that may stay, in (0, 1].")
    whole, left, removed = _size(params), list(range(blocks)), []
    while len(left) > keep if keep is not None else _size(params) > (params_share or 0) * whole:
        if len(left) == 1:
            raise ValueError(
                f"params_share={params_share} cannot be met: with one block left {_size(params) / whole:.4f} stays."
            )
        worst = int(np.argmin(np.asarray(scores(params))))
        params = remove(params, path, [worst], stacked=stacked)
        removed.append(left.pop(worst))
    return params, removed


def _size(params: PyTree) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))


def _container(path: str) -> str:
    """The path of what holds the blocks: numbered entries stand in the node above."""
    return path.rpartition("/")[0] if "{}" in path else path


def _pattern(path: str) -> re.Pattern[str]:
    name = path.rpartition("/")[2]
    return re.compile(re.escape(name).replace(re.escape("{}"), r"(\d+)"))


def _at(keys: Sequence[Any], where: str) -> bool:
    path = trees.path_string(keys)
    return where in ("", path) or path.endswith("/" + where)


def _is_container(node: Any, path: str, stacked: bool) -> bool:
    if "{}" in path:
        return isinstance(node, Mapping) and any(_pattern(path).fullmatch(str(key)) for key in node)
    return stacked or (isinstance(node, (list, tuple, Mapping)) and len(node) > 0)


def _names(node: Any, path: str, stacked: bool) -> list[Any]:
    """The keys or positions of the blocks, in order."""
    if stacked:
        lengths = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(node)}
        if len(lengths) != 1:
            raise ValueError(f"the leaves under {path!r} have leading axes of {sorted(lengths)}; they are not stacked.")
        return list(range(lengths.pop()))
    if not isinstance(node, Mapping):
        return list(range(len(node)))
    keys = [key for key in node if "{}" not in path or _pattern(path).fullmatch(str(key))]
    return sorted(keys, key=lambda key: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", str(key))])


def _cut(node: Any, path: str, names: Sequence[Any], gone: Sequence[int], stacked: bool) -> Any:
    wrong = [k for k in gone if not 0 <= k < len(names)]
    if wrong or len(gone) >= len(names):
        raise ValueError(f"remove(blocks={list(gone)}) at {path!r}: there are {len(names)} blocks, and one must stay.")
    kept = [name for k, name in enumerate(names) if k not in gone]
    if stacked:
        return jax.tree.map(lambda leaf: _sharding.take(leaf, np.asarray(kept), 0), node)
    if not isinstance(node, Mapping):
        if hasattr(node, "_fields"):
            raise ValueError(f"{path!r} is a {type(node).__name__}, which cannot have fewer blocks; make it a list.")
        return type(node)([node[k] for k in kept])  # pyright: ignore
    skeletons = {re.sub(r"\d+", "{}", str(name)) for name in names}
    numbered = "{}" in path or (len(skeletons) == 1 and skeletons.pop().count("{}") == 1)
    new = names[: len(kept)] if numbered else kept
    rest = {key: value for key, value in node.items() if key not in names}
    return type(node)({**rest, **{key: node[old] for key, old in zip(new, kept, strict=True) if old in node}})  # pyright: ignore


def _containers(tree: PyTree, path: str, stacked: bool) -> tuple[dict[str, Any], list[Any]]:
    """What holds the blocks, by its own path, and the names of the blocks, which all of them share."""
    found: dict[str, Any] = {}
    where = _container(path)

    def look(keys: Sequence[Any], node: Any) -> bool:
        if _at(keys, where) and _is_container(node, path, stacked):
            found[trees.path_string(keys)] = node
            return True
        return False

    jax.tree_util.tree_flatten_with_path(tree, is_leaf=look, is_leaf_takes_path=True)
    if not found:
        raise ValueError(_nothing(tree, path))
    every = {place: _names(node, path, stacked) for place, node in found.items()}
    longest = max(every, key=lambda place: len(every[place]))
    for place, names in every.items():
        if names != every[longest] and not _partial(found[place], names, found[longest], every[longest]):
            raise ValueError(
                f"{path!r} stands for different blocks: {every[longest]} in {longest!r} and {names} in {place!r}. Give "
                "a longer path."
            )
    return found, every[longest]


def _partial(node: Any, names: Sequence[Any], whole: Any, every: Sequence[Any]) -> bool:
    """Whether a node holds other leaves of some of the same blocks: statistics, which not every block needs to have."""
    apart = set(trees.paths(node)).isdisjoint(trees.paths(whole))
    return isinstance(node, Mapping) and set(names) < set(every) and apart


def _find(params: PyTree, path: str, stacked: bool) -> tuple[list[Any], list[Any]]:
    """The containers of one list of blocks, of which Linen has one for each collection; and the names of the blocks."""
    found, names = _containers(params, path, stacked)
    leaves = [leaf for node in found.values() for leaf in trees.paths(node)]
    if len(set(leaves)) < len(leaves):
        raise ValueError(
            f"{path!r} occurs {len(found)} times; give a longer path. It is in {trees.list_paths(list(found))}."
        )
    return list(found.values()), names


def _check_nothing_beside(tree: PyTree, path: str, stacked: bool) -> None:
    """Raises where a path into `params` leaves out what other collections hold of the same blocks."""
    shorter = f"/{path}".partition("/params/")[2]
    if not shorter:
        return
    inside, _ = _containers(tree, path, stacked)
    for place in _containers(tree, shorter, stacked)[0]:
        if place not in inside:
            raise ValueError(
                f"{path!r} leaves out {place!r}, which would keep all its blocks, under their old numbers. Give "
                f"{shorter!r}, which takes them from both."
            )


def _blocks(params: PyTree, path: str, stacked: bool) -> list[PyTree]:
    (node, *others), names = _find(params, path, stacked)
    if others:
        raise ValueError(f"{path!r} occurs {1 + len(others)} times; give a longer path, such as 'params/{path}'.")
    return [jax.tree.map(lambda leaf, k=k: leaf[k], node) if stacked else node[k] for k in names]


def _nothing(tree: PyTree, path: str) -> str:
    return (
        f"there are no blocks at {path!r}: give the path of a list, tuple or dict of blocks, of a stacked tree with "
        f"stacked=True, or numbered entries as 'layer_{{}}'. The paths are {trees.list_paths(trees.paths(tree))}."
    )
