"""Masks in Optax: `sparsify` wraps any optimiser, `keep_masks` ends any chain.

Zeros are enforced by the update itself: where a weight is pruned the update is `-p`, so that a plain
`optax.apply_updates` gives exact zeros in every floating dtype. They are lost if a transformation that rescales
updates follows; `check_masks` finds that.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from jaxprune import masks as masks_
from jaxprune import trees
from jaxprune._conditional import cond_by_part
from jaxprune._dtypes import widest
from jaxprune.pruners import Context, Pruner
from jaxprune.states import KeepMasksState, SparsifyState, given_masks, is_hidden, second_moment
from jaxprune.trees import PyTree


def sparsify(
    inner: optax.GradientTransformation,
    pruner: Pruner,
    *,
    key: jax.Array | None = None,
    pack_masks: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains under the masks of a pruner, with any Optax optimiser.

    At each update: masks move if they are due, from the raw gradients; gradients are masked; moments of pruned and
    grown weights are put to their initial values; the inner optimiser updates; pruned weights get the update `-p`.
    Parameters are first zeroed by the first update; to start from zeros use `jp.sparse_params(params, state)`. A weight
    that is NaN or infinite when it is pruned cannot be zeroed by adding an update: only `jp.sparse_params` does that.

    It must be the last link that touches updates: put clipping, schedules and the like inside.

    Args:
      inner: the optimiser.
      pruner: how masks evolve, from `jp.pruners`.
      key: a typed PRNG key; needed by pruners with random choices. It lives in the state.
      pack_masks: keep masks at one bit a weight instead of one byte.

    Returns:
      A transformation whose `update` needs `params`; extra arguments reach the inner optimiser.

    Raises:
      TypeError: `pruner` is no `Pruner`.
      ValueError: `update` is called without `params`.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([[3.0, 1.0]])}
      >>> tx = jp.sparsify(optax.sgd(0.1, momentum=0.9), jp.pruners.gmp(0.5, begin=0, end=0))
      >>> updates, state = tx.update({"w": jnp.ones((1, 2))}, tx.init(params), params)
      >>> float(optax.apply_updates(params, updates)["w"][0, 1])
      0.0
    """
    if not isinstance(pruner, Pruner):
        raise TypeError(f"pruner={pruner!r} is no Pruner; make one, as with jp.pruners.gmp(0.9, begin=0, end=1000).")
    inner = optax.with_extra_args_support(inner)

    def stored(masks: PyTree, pruner_state: Any) -> tuple[PyTree, Any]:
        return (
            masks_.pack(masks) if pack_masks else masks,
            masks_.pack(pruner_state) if pruner.masks_in_state else pruner_state,
        )

    def loaded(kept: tuple[PyTree, Any], params: PyTree) -> tuple[PyTree, Any]:
        masks, pruner_state = kept
        return (
            masks_.unpack(masks, params) if pack_masks else masks,
            masks_.unpack(pruner_state, params) if pruner.masks_in_state else pruner_state,
        )

    def init_fn(params: PyTree) -> SparsifyState:
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
            return jax.eval_shape(init_fn, params)
        trees.check_arrays(params)
        masks, pruner_state = pruner.init(params, None if key is None else jax.random.fold_in(key, 0))
        if jax.tree.leaves(params):
            masks = masks_.full_masks(masks, params)
        own_key = None if key is None else jax.random.clone(key)
        kept, pruner_state = stored(masks, pruner_state)
        return SparsifyState(kept, jnp.zeros((), jnp.int32), own_key, pruner_state, inner.init(params))

    def update_fn(
        updates: PyTree, state: SparsifyState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SparsifyState]:
        params = _require_params(params, "sparsify")
        inner_state, kept = state.inner_state, (state.masks, state.pruner_state)
        step_key = None if state.key is None else jax.random.fold_in(state.key, state.step + 1)
        context = Context(state.step, params, updates, step_key, second_moment(inner_state, params))
        if pruner.accumulate is not None:
            kept = kept[0], pruner.accumulate(kept[1], context)

        def refresh(kept: tuple[PyTree, Any], context: Context) -> tuple[PyTree, Any]:
            def due(kept: tuple[PyTree, Any], context: Context) -> tuple[PyTree, Any]:
                return stored(*pruner.update(*loaded(kept, params), context))

            return cond_by_part(pruner.is_update(state.step), due, kept, context)

        def reset(inner_state: Any, masks: PyTree) -> Any:
            # At every step: where nothing was pruned it changes nothing, and it fuses into the update of the moments,
            # which a condition would copy.
            if not pruner.moves:
                return inner_state
            return reset_moments(inner, inner_state, params, jax.tree.map(jnp.logical_not, masks))

        if not pruner.after_step:
            kept = refresh(kept, context)
        masks, pruner_state = loaded(kept, params)
        inner_state = reset(inner_state, masks)
        backward = pruner.backward(masks, pruner_state) if pruner.backward is not None else masks
        grads = updates
        if pruner.regularize is not None:
            grads = pruner.regularize(grads, params, masks, pruner_state)
        if not pruner.dense_gradients:
            grads = _masked(grads, backward)
            if "grad" in extra and jax.tree.structure(extra["grad"]) == jax.tree.structure(backward):
                extra["grad"] = _masked(extra["grad"], backward)
        out, inner_state = inner.update(grads, inner_state, params, **extra)
        if not pruner.dense_parameters:
            out = _zeroing(out, masks, params)
        elif not pruner.dense_gradients:
            out = _masked(out, backward)
        if pruner.after_step:
            kept = refresh(kept, context._replace(params=optax.apply_updates(cast(Any, params), out)))
            inner_state = reset(inner_state, loaded(kept, params)[0])
        step = optax.safe_increment(state.step)
        return out, SparsifyState(kept[0], cast(jax.Array, step), state.key, kept[1], inner_state)

    return optax.GradientTransformationExtraArgs(cast(Any, init_fn), cast(Any, update_fn))


def keep_masks(masks: PyTree) -> optax.GradientTransformationExtraArgs:
    """Holds fixed masks, as the last link of an Optax chain.

    It zeroes the updates' effect on pruned weights; gradients reach earlier links unmasked (their moments of pruned
    weights are therefore not zero: `sparsify(inner, jp.pruners.static(masks=...))` also masks gradients).

    Args:
      masks: a mask tree; it is copied.

    Returns:
      A transformation whose `update` needs `params`.

    Raises:
      ValueError: the masks do not fit the parameters.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = optax.chain(optax.sgd(0.1), jp.keep_masks({"w": jnp.array([True, False])}))
      >>> params = {"w": jnp.array([1.0, 2.0])}
      >>> updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"].tolist()
      [1.0, 0.0]
    """

    def init_fn(params: PyTree) -> KeepMasksState:
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
            return jax.eval_shape(init_fn, params)
        return KeepMasksState(masks_.full_masks(given_masks(params, masks), params))

    def update_fn(
        updates: PyTree, state: KeepMasksState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, KeepMasksState]:
        del extra
        params = _require_params(params, "keep_masks")
        return _zeroing(updates, state.masks, params), state

    return optax.GradientTransformationExtraArgs(cast(Any, init_fn), cast(Any, update_fn))


def reset_moments(inner: optax.GradientTransformation, state: Any, params: PyTree, changed: PyTree) -> Any:
    """Puts the moments of some weights to their initial values, in any Optax state.

    Moments are the parts of the state that Optax itself tells to be like parameters, of a parameter's shape;
    factored moments (another shape) and scalars stay.

    Args:
      inner: the optimiser the state belongs to.
      state: its state.
      params: the parameters.
      changed: bool arrays shaped like the parameters, True where to reset.

    Returns:
      The state, with the same structure, shapes and dtypes.
    """
    if not jax.tree.leaves(params):
        return state
    fresh = inner.init(params)
    keep = jnp.zeros((), bool)

    def matching(s: Any, c: Any) -> Any:
        return c if getattr(s, "shape", None) == getattr(c, "shape", ()) else keep

    try:
        where = optax.tree_utils.tree_map_params(
            inner, matching, state, changed, transform_non_params=lambda s: keep, is_leaf=is_hidden
        )
    except IndexError:
        # The line searches of Optax cannot be initialised with its own placeholder: go by structure instead.
        structure = jax.tree.structure(params)

        def like_params(node: Any) -> bool:
            return jax.tree.structure(node) == structure

        def subtree(node: Any) -> Any:
            return jax.tree.map(matching, node, changed) if like_params(node) else keep

        where = jax.tree.map(subtree, state, is_leaf=like_params)
    return jax.tree.map(lambda c, s, f: s if c is keep else jnp.where(c, f, s).astype(s.dtype), where, state, fresh)


def _masked(tree: PyTree, masks: PyTree) -> PyTree:
    return jax.tree.map(lambda x, m: jnp.where(m, x, jnp.zeros((), x.dtype)), tree, masks)


def _zeroing(updates: PyTree, masks: PyTree, params: PyTree) -> PyTree:
    def one(u: jax.Array, m: jax.Array, p: jax.Array) -> jax.Array:
        if not jnp.issubdtype(p.dtype, jnp.inexact):
            return u
        # An update narrower than its parameter could not cancel it.
        dtype = widest([u.dtype, p.dtype])
        return jnp.where(m, u.astype(dtype), -p.astype(dtype))

    return jax.tree.map(one, updates, masks, params)


def _require_params(params: PyTree | None, name: str) -> Any:
    if params is None:
        raise ValueError(f"{name} needs the parameters: call tx.update(grads, state, params).")
    return params
