"""Paths of parameters, and the `where` that says which of them may be pruned.

Every other module sees parameters only through this one: as a flat list of leaves with readable paths. It
serves any pytree: dicts, lists, NamedTuples, dataclasses, `nnx.State`, boxed Linen parameters, Equinox modules.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

PyTree: TypeAlias = Any
Where: TypeAlias = str | Sequence[str] | Callable[[str, Any], bool] | PyTree | None

_LISTED_PATHS = 20


class MatrixAxes(NamedTuple):
    """The axes of a parameter that is used as a matrix; any others are stacked layers or groups.

    Attributes:
      contract: summed over with the data's features.
      output: become features of the result.
      window: slide over space.
    """

    contract: tuple[int, ...]
    output: tuple[int, ...]
    window: tuple[int, ...] = ()

    def layout(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of one matrix: its window, its fan-in, its fan-out."""
        fans = [math.prod(shape[k] for k in axes) for axes in (self.contract, self.output)]
        return (*(shape[k] for k in self.window), *fans)


@runtime_checkable
class Traced(Protocol):
    """What `where` needs of a traced model: the parameters that dots and convolutions read, and how."""

    @property
    def matrix_axes(self) -> Mapping[str, MatrixAxes]:
        """The matrix axes by path."""
        ...


def matrix_axes(where: Any, path: str) -> MatrixAxes | None:
    """How a traced model uses a parameter as a matrix; None without a trace."""
    return where.matrix_axes.get(path) if isinstance(where, Traced) else None


def path_string(key_path: Sequence[Any]) -> str:
    """Joins a JAX key path with `/`, as in `encoder/layers_0/kernel`.

    The trailing `value` that NNX variables and boxed Linen parameters add is dropped.

    Args:
      key_path: the keys that `jax.tree_util.tree_flatten_with_path` gives for a leaf.

    Returns:
      The path.

    Example:
      >>> import jax
      >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"dense": {"kernel": 1.0}})
      >>> path_string(path)
      'dense/kernel'
    """
    if len(key_path) > 1:
        last = key_path[-1]
        if isinstance(last, jax.tree_util.GetAttrKey) and last.name == "value":
            key_path = key_path[:-1]
    return _joined(key_path)


def _joined(key_path: Sequence[Any]) -> str:
    return "/".join(map(_key_name, key_path))


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def paths(tree: PyTree) -> list[str]:
    """The path of every leaf, in flattening order.

    Args:
      tree: any pytree; `None` and `optax.MaskedNode` hold no leaf and have no path.

    Returns:
      A list of strings, one a leaf.

    Example:
      >>> paths({"a": [1.0, 2.0], "b": 3.0})
      ['a/0', 'a/1', 'b']
    """
    return [path for path, _ in leaves_with_paths(tree)]


def leaves_with_paths(tree: PyTree) -> list[tuple[str, Any]]:
    """Pairs of path and leaf, in flattening order."""
    named: list[tuple[str, Any]] = []
    for keys, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box):
        if _is_box(node):
            inside = jax.tree_util.tree_leaves_with_path(node)
            named += [(path_string((*keys, *inner)), leaf) for inner, leaf in inside]
        else:
            # Here a field named `value` is the user's own, as of a NamedTuple (query, key, value).
            named.append((_joined(keys), node))
    return named


def _is_box(node: Any) -> bool:
    """Whether a node is a box of Linen or a variable of NNX around a parameter."""
    return is_variable(node) or (hasattr(node, "unbox") and hasattr(node, "replace_boxed"))


def is_variable(node: Any) -> bool:
    """Whether a node is a variable of NNX."""
    return hasattr(node, "get_value") and hasattr(node, "set_value")


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is a real floating array; integers, booleans and PRNG keys are never pruned."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def resolve_where(where: Where, tree: PyTree) -> PyTree:
    """Turns any form of `where` into a tree of Python bools: True where a leaf may be pruned.

    Args:
      where: `None` takes the floating leaves with two dimensions or more; a regular expression (or a list of
        them) must match a whole path; a callable gets `(path, leaf)`; a pytree of bools may be a prefix of `tree`; a
        traced model (`jp.trace`) takes exactly the leaves that dots and convolutions read.
      tree: the parameters, concrete or abstract.

    Returns:
      A tree of bools with the structure of `tree`. Leaves that are not floating are always False.

    Raises:
      ValueError: nothing is matched (the paths there are get listed), or the tree of bools does not fit.
      TypeError: `where` has none of the forms above.

    Example:
      >>> import jax.numpy as jnp
      >>> tree = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> resolve_where(None, tree)
      {'dense': {'bias': False, 'kernel': True}}
      >>> resolve_where(".*/bias", tree)
      {'dense': {'bias': True, 'kernel': False}}
    """
    treedef = jax.tree.structure(tree)
    named = leaves_with_paths(tree)
    chosen = choose(where, tree)
    chosen = [bool(c) and is_floating(leaf) for c, (_, leaf) in zip(chosen, named, strict=True)]
    # Optax probes `init` with a placeholder that has no leaves at all; there is nothing to miss in it.
    if named and not any(chosen):
        described = "its default (floating leaves with ndim >= 2)" if where is None else f"where={where!r}"
        raise ValueError(
            f"{described} matches no floating parameter, so nothing would be pruned. Give a regular expression that "
            f"matches a whole path, a callable (path, leaf) -> bool, or a tree of bools. The paths are: "
            f"{list_paths([path for path, _ in named])}."
        )
    return jax.tree.unflatten(treedef, chosen)


def choose(where: Where, tree: PyTree) -> list[bool]:
    """What a `where` says of each leaf, whatever its dtype, in flattening order; nothing may be chosen.

    Args:
      where: as for `resolve_where`.
      tree: any pytree.

    Raises:
      ValueError: a tree of bools that does not fit.
      TypeError: `where` has none of the forms.

    Example:
      >>> choose(".*b", {"a": 1, "b": 2})
      [False, True]
    """
    named = leaves_with_paths(tree)
    if where is None:
        return [getattr(leaf, "ndim", 0) >= 2 for _, leaf in named]
    if isinstance(where, Traced):
        return [path in where.matrix_axes for path, _ in named]
    patterns = [where] if isinstance(where, str) else where
    if isinstance(patterns, (list, tuple)) and patterns and all(isinstance(p, str) for p in patterns):
        compiled = [compile_pattern(pattern) for pattern in patterns]
        return [any(c.fullmatch(path) for c in compiled) for path, _ in named]
    # An Equinox module of bools is itself callable: look at the leaves first.
    flags = jax.tree.leaves(where)
    if flags and all(is_bool(flag) for flag in flags):
        return jax.tree.leaves(broadcast_prefix(where, tree, "where"))
    if callable(where):
        return [bool(where(path, leaf)) for path, leaf in named]
    raise TypeError(
        f"where={where!r} is of type {type(where).__name__}; it may be None, a regular expression or a list of them, "
        "a callable (path, leaf) -> bool, or a pytree (prefix) of bools."
    )


def is_bool(leaf: Any) -> bool:
    """Whether a leaf is a Python bool or a concrete boolean scalar."""
    return isinstance(leaf, bool) or (getattr(leaf, "dtype", None) == bool and getattr(leaf, "ndim", 1) == 0)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compiles a regular expression over paths; a malformed one is a ValueError that shows it."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}.") from error


def broadcast_prefix(prefix: PyTree, tree: PyTree, name: str) -> PyTree:
    """Repeats the leaves of a prefix tree over the leaves of `tree`.

    Args:
      prefix: a tree whose leaves stand for whole subtrees of `tree`.
      tree: the full tree.
      name: what the prefix is called in an error.

    Returns:
      A tree with the structure of `tree`.

    Raises:
      ValueError: `prefix` is no prefix of `tree`.

    Example:
      >>> broadcast_prefix({"a": 1, "b": 2}, {"a": [0.0, 0.0], "b": 0.0}, "numbers")
      {'a': [1, 1], 'b': 2}
    """
    try:
        return jax.tree.map(lambda value, part: jax.tree.map(lambda _: value, part), prefix, tree)
    except ValueError as error:
        raise ValueError(
            f"{name} is no prefix of the parameters: {error} Build it with the parameters' own tree structure "
            "(for NNX: from nnx.as_pure(nnx.state(model, nnx.Param)))."
        ) from error


def check_same_structure(tree: PyTree, params: PyTree, name: str) -> None:
    """Raises a ValueError that names the first path at which `tree` departs from `params`."""
    if jax.tree.structure(tree) == jax.tree.structure(params):
        return
    mine, theirs = paths(tree), paths(params)
    extra = [path for path in mine if path not in theirs]
    missing = [path for path in theirs if path not in mine]
    parts = []
    if missing:
        parts.append(f"it lacks {list_paths(missing)}")
    if extra:
        parts.append(f"it has {list_paths(extra)} that the parameters have not")
    if not parts:
        parts.append(f"its containers differ: {jax.tree.structure(tree)} against {jax.tree.structure(params)}")
    raise ValueError(
        f"{name} has another tree structure than the parameters: {'; '.join(parts)}. Build it from the same parameters."
    )


def check_arrays(params: PyTree) -> None:
    """Raises a TypeError that names the first leaf that is no array."""
    for path, leaf in leaves_with_paths(params):
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(
                f"the parameter {path} is a {type(leaf).__name__}, not an array. Give arrays only; of an Equinox "
                "model: eqx.filter(model, eqx.is_inexact_array)."
            )


def list_paths(names: Sequence[str]) -> str:
    """A readable, bounded list of paths for an error message."""
    shown = ", ".join(names[:_LISTED_PATHS])
    rest = len(names) - _LISTED_PATHS
    return f"{shown} and {rest} more" if rest > 0 else shown
