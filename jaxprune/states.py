"""The states that hold masks, and reading masks out of them, however deep they are nested."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import masks as masks_
from jaxprune import trees
from jaxprune._counts import is_traced
from jaxprune.trees import PyTree


class SparsifyState(NamedTuple):
    """State of `sparsify`.

    Attributes:
      masks: bool arrays shaped like the parameters, or their packed form.
      step: int32 number of updates.
      key: PRNG key, or None.
      pruner_state: what the pruner carries along.
      inner_state: state of the inner optimiser.
    """

    masks: PyTree
    step: jax.Array
    key: jax.Array | None
    pruner_state: Any
    inner_state: Any


class KeepMasksState(NamedTuple):
    """State of `keep_masks`.

    Attributes:
      masks: bool arrays shaped like the parameters.
    """

    masks: PyTree


def get_masks(opt_state: Any, params: PyTree | None = None) -> PyTree:
    """The masks in an optimiser state, wherever they are nested.

    Several are merged: the parts of an `optax.partition` side by side, nested ones by logical and.

    Args:
      opt_state: any state that holds the state of `sparsify` or `keep_masks`; of an `nnx.Optimizer`, its
        `opt_state`.
      params: the parameters; needed when masks are packed, or when parts of the parameters have none.

    Returns:
      A mask tree with the structure of the parameters.

    Raises:
      ValueError: there are no masks, or packed ones without `params`.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = optax.chain(optax.sgd(0.1), jp.keep_masks({"w": jnp.array([True, False])}))
      >>> jp.get_masks(tx.init({"w": jnp.ones(2)}))["w"].tolist()
      [True, False]
    """
    found: list[PyTree] = [_unwrap(holder.masks) for holder in _holders(opt_state)]
    if not found:
        raise ValueError(
            "no masks in this optimiser state: it holds no state of jp.sparsify or jp.keep_masks. Pass the whole "
            "opt_state (of TrainState: .opt_state; of nnx.Optimizer: .opt_state)."
        )
    if params is not None:
        # One by one: some may be packed and others not.
        found = [_fit(masks, params) for masks in found]
    elif any(leaf.dtype == jnp.uint8 for leaf in jax.tree.leaves(found)):
        raise ValueError("the masks are packed; call get_masks(opt_state, params), whose shapes unpack them.")
    return functools.reduce(_merge, found)


def sparse_params(params: PyTree, opt_state: Any) -> PyTree:
    """The parameters as the forward pass is to see them: zero where pruned.

    The same as `params` after a first update for most pruners; for those with dense storage (STE, SR-STE,
    Top-KAST, movement) the gradient must be taken here.

    Args:
      params: the stored parameters.
      opt_state: a state that holds masks.

    Returns:
      Parameters of the same structure, shapes, dtypes and shardings.

    Raises:
      ValueError: the state holds no masks.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([[3.0, 1.0]])}
      >>> jp.sparse_params(params, jp.sparsify(optax.sgd(0.1), jp.pruners.ste(0.5)).init(params))["w"].tolist()
      [[3.0, 0.0]]
    """
    return masks_.apply_masks(params, get_masks(opt_state, params))


def check_masks(params: PyTree, opt_state: Any) -> None:
    """Raises if a pruned weight is not zero, as when a later link of the chain rescales updates.

    Not for pruners with dense storage, whose pruned weights keep their values; check `sparse_params` there.

    Args:
      params: concrete parameters, after an update.
      opt_state: a state that holds masks.

    Raises:
      ValueError: some pruned weights are not zero; the paths and counts are named.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = jp.keep_masks({"w": jnp.array([True, False])})
      >>> jp.check_masks({"w": jnp.array([1.0, 0.0])}, tx.init({"w": jnp.ones(2)}))
    """
    masks = get_masks(opt_state, params)
    wrong = []
    for (path, param), mask in zip(trees.leaves_with_paths(params), jax.tree.leaves(masks), strict=True):
        count = int(np.sum(np.asarray(~mask & (param != 0))))
        if count:
            wrong.append(f"{path} ({count})")
    if wrong:
        raise ValueError(
            f"pruned weights that are not zero: {trees.list_paths(wrong)}. A transformation after jp.sparsify or "
            "jp.keep_masks rescales updates (put it inside or before), or the pruner stores dense parameters (use "
            "jp.sparse_params), or no update has run yet."
        )


def rewind(initial_params: PyTree, masks: PyTree) -> PyTree:
    """Puts the kept weights back to earlier values, for lottery tickets.

    Args:
      initial_params: parameters at initialisation, or at an early step.
      masks: masks found by training.

    Returns:
      The earlier parameters under the masks, as arrays of their own.

    Raises:
      ValueError: the masks do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> rewind({"w": jnp.array([0.5, 0.7])}, {"w": jnp.array([False, True])})["w"].tolist()
      [0.0, 0.699999988079071]
    """
    return masks_.apply_masks(initial_params, masks)


def second_moment(opt_state: Any, params: PyTree) -> PyTree | None:
    """The second moment `E[g^2]` that an optimiser keeps (`nu`), for the `fisher` score.

    Args:
      opt_state: any Optax state.
      params: the parameters.

    Returns:
      A tree shaped like the parameters, or None where the state holds none.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = {"w": jnp.ones(2)}
      >>> second_moment(optax.adam(0.1).init(params), params)["w"].tolist()
      [0.0, 0.0]
    """
    structure, shapes = jax.tree.structure(params), [np.shape(p) for p in jax.tree.leaves(params)]
    for _, value in optax.tree_utils.tree_get_all_with_path(opt_state, "nu"):
        if jax.tree.structure(value) == structure and [np.shape(v) for v in jax.tree.leaves(value)] == shapes:
            return value
    return None


def _is_holder(node: Any) -> bool:
    return isinstance(node, (SparsifyState, KeepMasksState))


def _holders(state: Any) -> list[Any]:
    found: list[Any] = []
    for node in jax.tree.leaves(state, is_leaf=_is_holder):
        if _is_holder(node):
            found.append(node)
            found += _holders(getattr(node, "inner_state", ()))
    return found


def _unwrap(tree: PyTree) -> PyTree:
    """Takes arrays out of the variables in which NNX stores parameters and optimiser states."""
    return jax.tree.map(
        lambda node: node.get_value() if trees.is_variable(node) else node, tree, is_leaf=trees.is_variable
    )


def is_hidden(node: Any) -> bool:
    """Whether a leaf is hidden from a transformation by `optax.masked` or `optax.partition`."""
    return isinstance(node, optax.MaskedNode)


def hide_like(params: PyTree, tree: PyTree) -> PyTree:
    """Hides in a tree what is hidden in the parameters; Optax's leafless placeholder hides everything.

    The tree also gets the parameters' own containers, where it was made of their arrays without the variables of NNX.
    """
    if not jax.tree.leaves(params):
        return params
    if jax.tree.structure(tree) == jax.tree.structure(params):
        return tree
    if any(is_hidden(leaf) for leaf in jax.tree.leaves(params, is_leaf=is_hidden)):
        tree = jax.tree.map(lambda p, m: p if is_hidden(p) else m, _unwrap(params), _unwrap(tree), is_leaf=is_hidden)
    if trees.paths(tree) == trees.paths(params):
        return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(tree))
    return tree


def given_masks(params: PyTree, masks: PyTree) -> PyTree:
    """The masks that a user gave, of the parameters that one transformation sees.

    Raises:
      ValueError: they do not fit, or prune a parameter that no update can set to zero.
      TypeError: a parameter is no array.
    """
    trees.check_arrays(params)
    masks = hide_like(params, masks)
    masks_.check_masks_fit(masks, params)
    for (path, p), mask in zip(trees.leaves_with_paths(params), jax.tree.leaves(masks), strict=True):
        if not jnp.issubdtype(p.dtype, jnp.inexact) and not is_traced(mask) and not np.all(mask):
            raise ValueError(
                f"the mask of {path} prunes a parameter of dtype {p.dtype}, which optimisers leave as it is. Keep all "
                "of it (the mask True), and zero it once with jp.apply_masks."
            )
    return masks


def _merge(left: PyTree, right: PyTree) -> PyTree:
    def one(a: Any, b: Any) -> Any:
        if is_hidden(a):
            return b
        return a if is_hidden(b) else a & b

    return jax.tree.map(one, left, right, is_leaf=is_hidden)


def _fit(masks: PyTree, params: PyTree) -> PyTree:
    def one(m: Any, p: Any) -> Any:
        if is_hidden(m):
            return jax.tree.map(lambda leaf: jnp.ones_like(leaf, dtype=bool), p)
        return masks_.unpack([m], [p])[0] if m.dtype == jnp.uint8 else m

    try:
        # Parameters may be NNX variables, which the masks were taken out of: fit array to array, then put them back.
        fitted = jax.tree.map(one, masks, _unwrap(params), is_leaf=is_hidden)
        return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(fitted))
    except ValueError as error:
        raise ValueError(f"the masks in this optimiser state do not belong to these parameters: {error}") from error
