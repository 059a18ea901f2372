"""Equinox: a module whose arrays and static fields are smaller.

    model = equinox.trace(module, x, call=lambda module, x: jax.vmap(module)(x))
    small = equinox.resize(module, model, plan)       # an eqx.Module like any other

The layers of `eqx.nn` hold their sizes twice, as shapes of their arrays and as static fields (`in_features`,
`num_heads`) that they check and reshape with. `resize` cuts the first with `eqx.tree_at` and sets the second by a fixer
for each class of layer; `register_resize` adds one for a class of the user's.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax

from jaxprune import trees
from jaxprune.frameworks import _checks
from jaxprune.frameworks._attributes import CutArrays, default_call
from jaxprune.frameworks._layers import Fixer, Fixers, Layer
from jaxprune.shrinking import Plan
from jaxprune.tracing import Model
from jaxprune.tracing import trace as trace_function
from jaxprune.trees import PyTree

__all__ = ["parameters", "register_resize", "resize", "trace"]

M = TypeVar("M", bound=eqx.Module)
_FIXERS = Fixers()
_REMEDY = (
    "Read the size from an array's shape (`self.linear.weight.shape[0]`), or give the class a fixer with "
    "jaxprune.frameworks.equinox.register_resize, or use jaxprune.shrunk_function, which needs no change of the module."
)


def register_resize(cls: type[eqx.Module], fixer: Fixer) -> None:
    """Says how the static fields of a module class follow from the shapes of its arrays.

    Args:
      cls: the class; classes derived from it are served too.
      fixer: a function `(module, layer) -> {field: value}`. The module's arrays are cut already;
        `layer.parts(name, axis, count)` tells how many of some equal parts of an axis (heads, groups) are left.

    Example:
      >>> import equinox as eqx
      >>> class Halves(eqx.Module):
      ...     linear: eqx.nn.Linear
      ...     width: int = eqx.field(static=True)
      >>> register_resize(Halves, lambda module, layer: {"width": module.linear.weight.shape[0] // 2})
    """
    _FIXERS.register(cls, fixer)


@dataclasses.dataclass(frozen=True, eq=False)
class _Functional:
    """A module as a function of its arrays."""

    static: PyTree
    call: Callable[..., Any]

    def __call__(self, params: PyTree, *args: Any) -> Any:
        return self.call(eqx.combine(params, self.static), *args)


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def parameters(module: M) -> M:
    """The module with everything but its arrays left out.

    It is what `trace` traces, so what `jaxprune.shrink` and `jaxprune.shrunk_function` take for its model.

    Args:
      module: the module.

    Example:
      >>> import equinox as eqx, jax
      >>> [leaf.shape for leaf in jax.tree.leaves(parameters(eqx.nn.Linear(2, 3, key=jax.random.key(0))))]
      [(3, 2), (3,)]
    """
    return eqx.filter(module, _is_array)


def trace(module: eqx.Module, *args: Any, call: Callable[..., Any] = default_call, **options: Any) -> Model:
    """Reads an Equinox module: `jaxprune.trace` of it as a function of `parameters(module)`.

    Args:
      module: the module.
      args: the arguments; shapes are enough.
      call: what to do with them, a function `(module, *args)`, such as `lambda module, x: jax.vmap(module)(x)`;
        `module(*args)` if not given.
      options: those of `jaxprune.trace`.

    Returns:
      The model.

    Example:
      >>> import equinox as eqx, jax, jax.numpy as jnp
      >>> module = eqx.nn.MLP(4, 2, width_size=3, depth=1, key=jax.random.key(0))
      >>> trace(module, jnp.ones(4))
      Model(4 parameters, 2 sites, 1 groups)
    """
    params, static = eqx.partition(module, _is_array)
    return trace_function(_Functional(static, call), params, *args, **options)


def resize(module: M, model: Model, plan: Plan, *, call: Callable[..., Any] | None = None, check: bool = True) -> M:
    """A smaller copy of a module: its arrays cut by the plan, its static fields set to fit.

    Where the head size of an `eqx.nn.MultiheadAttention` has been cut from d to d', the query's weight and bias are
    multiplied by sqrt(d' / d), because the module divides by the sqrt(d') of what is left. Normalisations take means
    over what is left, as in `jaxprune.shrunk_function(model, plan, norm="resize")`. An `eqx.nn.State` is not part of
    the module: trace it along with the parameters, and cut it with `jaxprune.shrink`.

    Args:
      module: the module that was traced.
      model: the trace of it, by `trace` or by `jaxprune.trace` of a function of its arrays.
      plan: which indices stay.
      call: a function `(module, *args)` that does what was traced, for the check; only needed for a model that
        `trace` has not made, and that is not `module(*args)`.
      check: whether to run the result once, against the replay.

    Returns:
      The smaller module.

    Raises:
      ValueError: the plan does not fit the model, or the result does not fit: a hand-written size.

    Example:
      >>> import equinox as eqx, jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> module = eqx.nn.MLP(4, 2, width_size=3, depth=1, key=jax.random.key(0))
      >>> model = trace(module, jnp.ones(4))
      >>> small = resize(module, model, jp.Plan({name: [True, False, True] for name in model.groups}))
      >>> small.layers[0].out_features, small(jnp.ones(4)).shape
      (2, (2,))
    """
    named = trees.leaves_with_paths(module)
    arrays = CutArrays(model, plan, {path: leaf for path, leaf in named if _is_array(leaf)}, _REMEDY)
    for path, layer in _modules(module):
        if isinstance(layer, eqx.nn.MultiheadAttention):
            names = tuple(_join(path, name) for name in ("query_proj/weight", "query_proj/bias"))
            arrays.fold_scale(names[0], -2, names, layer.num_heads)
    changed = [k for k, (path, _) in enumerate(named) if path in arrays.small]
    small = eqx.tree_at(
        lambda tree: [jax.tree.leaves(tree)[k] for k in changed], module, [arrays.small[named[k][0]] for k in changed]
    )
    shapes = {path: tuple(leaf.shape) for path, leaf in trees.leaves_with_paths(small) if _is_array(leaf)}
    for path, layer in _modules(small):
        known = Layer(path, lambda name, path=path: shapes.get(_join(path, name)), arrays.cut)
        for name, value in _FIXERS.attributes(layer, known).items():
            # Every object in `small` is a new one, and tree_at reaches no static field.
            object.__setattr__(layer, name, value)
    if check:
        params, static = eqx.partition(small, _is_array)
        traced = model.apply_fn.call if isinstance(model.apply_fn, _Functional) else default_call
        function = _Functional(static, call or traced)
        _checks.check(function, model, plan, params, arrays.reference, _REMEDY, _name_of)
    return small


def _modules(tree: PyTree) -> Iterator[tuple[str, eqx.Module]]:
    """Every module in a tree with its path, the whole first."""
    if isinstance(tree, eqx.Module):
        yield "", tree
    below, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: node is not tree and isinstance(node, eqx.Module)
    )
    for path, node in below:
        if isinstance(node, eqx.Module) and node is not tree:
            for inner, module in _modules(node):
                yield _join(trees.path_string(path), inner), module


def _name_of(running: Sequence[Any]) -> str | None:
    modules = [each for each in running if isinstance(each, eqx.Module)]
    # The outermost that holds the innermost gives the longest path.
    found = next((path for root in modules for path, module in _modules(root) if module is modules[-1]), None)
    return None if found is None else f"{found or 'the module'} ({type(modules[-1]).__name__})"


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _linear(module: eqx.nn.Linear, layer: Layer) -> dict[str, Any]:
    outputs, inputs = layer.shape("weight")[-2:]
    sizes = {"out_features": outputs, "in_features": inputs}
    return {name: size for name, size in sizes.items() if getattr(module, name) != "scalar"}


def _conv(module: Any, layer: Layer) -> dict[str, Any]:
    outputs, inputs, *_ = layer.shape("weight")[-module.num_spatial_dims - 2 :]
    groups = module.groups
    if groups > 1:
        groups, _ = layer.parts("weight", -module.num_spatial_dims - 2, groups)
    return {"out_channels": outputs, "in_channels": inputs * groups, "groups": groups}


def _norm(module: Any, layer: Layer) -> dict[str, Any]:
    shape = layer.shape("weight", "bias")
    return {"shape": tuple(shape[-len(module.shape) :])} if shape and module.shape else {}


def _group_norm(module: eqx.nn.GroupNorm, layer: Layer) -> dict[str, Any]:
    if not layer.shape("weight"):
        return {}
    groups, size = layer.parts("weight", -1, module.groups)
    return {"groups": groups, "channels": groups * size}


def _batch_norm(module: eqx.nn.BatchNorm, layer: Layer) -> dict[str, Any]:
    return {"input_size": layer.shape("weight")[-1]} if layer.shape("weight") else {}


def _embedding(module: eqx.nn.Embedding, layer: Layer) -> dict[str, Any]:
    number, size = layer.shape("weight")[-2:]
    return {"num_embeddings": number, "embedding_size": size}


def _cell(module: Any, layer: Layer) -> dict[str, Any]:
    return {"input_size": layer.shape("weight_ih")[-1], "hidden_size": layer.shape("weight_hh")[-1]}


def _attention(module: eqx.nn.MultiheadAttention, layer: Layer) -> dict[str, Any]:
    heads, size = layer.parts("query_proj/weight", -2, module.num_heads)
    return {
        "num_heads": heads,
        "qk_size": size,
        "vo_size": layer.shape("value_proj/weight")[-2] // heads,
        "query_size": layer.shape("query_proj/weight")[-1],
        "key_size": layer.shape("key_proj/weight")[-1],
        "value_size": layer.shape("value_proj/weight")[-1],
        "output_size": layer.shape("output_proj/weight")[-2],
    }


def _mlp(module: eqx.nn.MLP, layer: Layer) -> dict[str, Any]:
    # The width of the first hidden layer: a plan may leave a different one in each.
    width = layer.shape("layers/0/weight")[-2] if module.depth else module.width_size
    return {"width_size": width}


register_resize(eqx.nn.Linear, _linear)
register_resize(eqx.nn.Conv, _conv)
register_resize(eqx.nn.ConvTranspose, _conv)
register_resize(eqx.nn.LayerNorm, _norm)
register_resize(eqx.nn.RMSNorm, _norm)
register_resize(eqx.nn.GroupNorm, _group_norm)
register_resize(eqx.nn.BatchNorm, _batch_norm)
register_resize(eqx.nn.Embedding, _embedding)
register_resize(eqx.nn.GRUCell, _cell)
register_resize(eqx.nn.LSTMCell, _cell)
register_resize(eqx.nn.MultiheadAttention, _attention)
register_resize(eqx.nn.MLP, _mlp)
