"""Making things smaller by a plan: trees of arrays, and the function itself."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _sharding, trees
from jaxprune.shrinking.matching import derived, fits, like, parts_of
from jaxprune.shrinking.plan import Plan
from jaxprune.tracing import Model
from jaxprune.tracing.axes import Sizes
from jaxprune.tracing.evaluate import Evaluator
from jaxprune.tracing.graph import Graph, Program, build
from jaxprune.tracing.means import find_means
from jaxprune.trees import PyTree


def shrink(model: Model, plan: Plan, tree: PyTree) -> PyTree:
    """Cuts away what the plan does not keep.

    Every part of `tree` that has the paths and the shapes of the traced parameters, or of a part of them (such as
    `params["params"]` of Flax), is cut as they are: the parameters themselves, their masks, moments in an optimiser's
    state, moving averages. Everything else stays: counters, keys, hyperparameters. Sharded arrays stay sharded, except
    along an axis whose new size no longer divides.

    Args:
      model: the traced model.
      plan: which indices stay.
      tree: any pytree.

    Returns:
      A tree of the same structure, with smaller arrays.

    Raises:
      ValueError: the plan does not fit the model, `tree` has no part like the parameters, or one that cannot be cut
        along, such as the factored moments of Adafactor.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
      >>> plan = jp.Plan({"a:1": [True, False, True]})
      >>> jax.tree.map(jnp.shape, shrink(model, plan, params))
      {'a': (2, 2), 'b': (2, 2)}
      >>> state = optax.sgd(0.1, momentum=0.9).init(params)
      >>> shrink(model, plan, state)[0].trace["a"].shape
      (2, 2)
    """
    plan.check(model)
    sizes, parts = model.sizes(plan.keep), parts_of(model)
    found = 0

    def cut(node: PyTree) -> PyTree:
        nonlocal found
        leaves = jax.tree.leaves(node)
        candidates = like(parts, node)
        fitting = [c for c in candidates if all(map(functools.partial(fits, model), c, leaves))]
        if not fitting:
            _check_left_alone(model, sizes, candidates, leaves)
            return node
        found += 1
        cuts = [[_kept_of(model, sizes, number) for number in numbers] for numbers in fitting]
        if any(other != cuts[0] for other in cuts[1:]):
            raise ValueError(
                "a part of this tree has the paths and shapes of several parts of the parameters, which the plan cuts "
                f"differently: those of {[model.paths[numbers[0]] for numbers in fitting]}. Give the whole tree of "
                "parameters, or trees like it."
            )
        chosen = [_cut_leaf(model, sizes, number, leaf) for number, leaf in zip(fitting[0], leaves, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(node), chosen)

    result = jax.tree.map(cut, tree, is_leaf=lambda node: bool(like(parts, node)))
    if not found:
        raise ValueError(
            "nothing in this tree has the paths and the shapes of the traced parameters, so nothing can be cut. The "
            f"parameters are {trees.list_paths(model.paths)}; trace the model with everything that shall be cut along."
        )
    return result


def _check_left_alone(model: Model, sizes: Sizes, candidates: Sequence[Sequence[int]], leaves: Sequence[Any]) -> None:
    """Raises where a part that does not fit must not be left as it is, because its parameters are cut."""
    for numbers in candidates:
        complete = len(numbers) == len(model.paths) > 1
        for number, leaf in zip(numbers, leaves, strict=True):
            follows = derived(model, number, leaf) or (complete and np.ndim(leaf) > 0 and not fits(model, number, leaf))
            if follows and not all(map(sizes.whole, model.dims_of(number))) and np.size(leaf) > 1:
                raise ValueError(
                    f"a part of this tree has an array of shape {np.shape(leaf)} for {model.paths[number]}, which has "
                    f"{model.leaves[number].shape} and is cut: what is not shaped like the parameter (factored "
                    "moments, packed masks, parameters that are cut already) cannot be cut along. Shrink the other "
                    "parts, and initialise this one anew for the smaller parameters."
                )


def _kept_of(model: Model, sizes: Sizes, number: int) -> list[list[int]]:
    return [np.flatnonzero(sizes.mask(dim)).tolist() for dim in model.dims_of(number)]


def _cut_leaf(model: Model, sizes: Sizes, number: int, leaf: Any) -> Any:
    for axis, dim in enumerate(model.dims_of(number) if np.ndim(leaf) else ()):
        if leaf.shape[axis] == dim.size and not sizes.whole(dim):
            leaf = _sharding.take(leaf, np.flatnonzero(sizes.mask(dim)), axis)
    return leaf


def shrunk_function(model: Model, plan: Plan, norm: Literal["exact", "resize"] = "exact") -> Callable[..., Any]:
    """The traced function on smaller parameters.

    The trace is replayed with the sizes that are left. The result is pure: it can be jitted, differentiated, mapped and
    exported, also with a symbolic batch size. For arguments of other shapes than the traced ones, and for parameters of
    other dtypes, the function is traced again; where that leaves open which positions the plan removes (from an axis
    that the batch is merged into), it is an error.

    Args:
      model: the traced model.
      plan: which indices stay.
      norm: `"exact"` keeps the numbers that the trace holds, so that the result is what the masked model computes.
        `"resize"` makes means over a cut axis means over what is left, as the same module built smaller would.

    Returns:
      A function of `(small_params, *args)`.

    Raises:
      ValueError: the plan does not fit the model, or `norm` is none of the two.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
      >>> plan = jp.Plan({"a:1": [True, False, True]})
      >>> shrunk_function(model, plan)(jp.shrink(model, plan, params), jnp.ones(2))
      Array([4., 4.], dtype=float32)
    """
    plan.check(model)
    if norm not in ("exact", "resize"):
        raise ValueError(f"norm={norm!r}; it may be 'exact' or 'resize'.")
    expected = [model.sizes(plan.keep).shape(value) for value in model.program.graph.inputs[: len(model.paths)]]

    # Traces are kept by what they were made for; they are pure, so nothing can go stale.
    programs = {(_shapes_of(model.args), _dtypes_of(model.leaves)): model.program}

    def function(params: PyTree, *args: Any) -> Any:
        leaves = _checked_leaves(model, expected, params)
        key = _shapes_of(args), _dtypes_of(leaves)
        if key not in programs:
            programs[key] = _program_for(model, leaves, args)
        program = programs[key]
        sizes = model.sizes(plan.keep, program)
        means = find_means(program) if norm == "resize" else None
        evaluator = Evaluator(program, model.axes.rules, sizes, means=means)
        outputs = evaluator([*leaves, *jax.tree.leaves(args)])
        return jax.tree.unflatten(jax.tree.structure(model.outputs), outputs)

    return function


def _checked_leaves(model: Model, expected: Sequence[tuple[int, ...]], params: PyTree) -> list[Any]:
    trees.check_same_structure(params, model.params, "the parameters given to the shrunk function")
    leaves = jax.tree.leaves(params)
    for path, leaf, shape in zip(model.paths, leaves, expected, strict=True):
        if jnp.shape(leaf) != shape:
            raise ValueError(
                f"{path} has shape {jnp.shape(leaf)}, but the plan leaves {shape}. Give the parameters that "
                "jaxprune.shrink returns for the same plan."
            )
    return leaves


def _shapes_of(args: tuple[Any, ...]) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(args)
    return (structure, *((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))


def _dtypes_of(leaves: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(map(jnp.result_type, leaves))


def _program_for(model: Model, leaves: Sequence[Any], args: tuple[Any, ...]) -> Program:
    """The program of the traced function for other arguments, and for parameters of other dtypes."""
    if jax.tree.structure(args) != jax.tree.structure(model.args):
        raise ValueError(
            f"the arguments have the structure {jax.tree.structure(args)}; the model was traced with "
            f"{jax.tree.structure(model.args)}."
        )
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), args)
    pairs = zip(model.leaves, _dtypes_of(leaves), strict=True)
    full = [jax.ShapeDtypeStruct(jnp.shape(leaf), dtype) for leaf, dtype in pairs]
    program = build(jax.make_jaxpr(model.apply_fn)(jax.tree.unflatten(jax.tree.structure(model.params), full), *given))
    if list(_names(program.graph)) != list(_names(model.program.graph)):
        what, fix = "arguments of these shapes and dtypes", ""
        for path, old, new in zip(model.paths, _dtypes_of(model.leaves), _dtypes_of(full), strict=True):
            if old != new:
                what, fix = "parameters of these dtypes", f", or cast {path}, which is {new}, to {old}"
                break
        raise ValueError(
            f"the function does other operations for {what} than for those it was traced with, so the plan cannot be "
            f"carried over. Trace it with {what}{fix}."
        )
    return program


def _names(graph: Graph) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((node.name, node.outputs) for node in graph.everything())
