"""Flax NNX: a module whose Variables and attributes are smaller.

    model = nnx.trace(module, x)
    small = nnx.resize(module, model, plan)          # an nnx.Module like any other
    optimizer = flax.nnx.Optimizer(small, tx, wrt=flax.nnx.Param)

An NNX layer holds its sizes twice, as shapes of its Variables and as attributes (`in_features`, `num_heads`) that it
checks and reshapes with. `resize` cuts the first and sets the second by a fixer for each class of layer;
`register_resize` adds one for a class of the user's.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx

from jaxprune import trees
from jaxprune.frameworks import _checks
from jaxprune.frameworks._attributes import CutArrays, default_call
from jaxprune.frameworks._layers import Fixer, Fixers, Layer
from jaxprune.shrinking import Plan
from jaxprune.tracing import Model
from jaxprune.tracing import trace as trace_function
from jaxprune.trees import PyTree

__all__ = ["parameters", "register_resize", "resize", "trace"]

M = TypeVar("M", bound=nnx.Module)
_FIXERS = Fixers()
_REMEDY = (
    "Read the size from a parameter's shape (`self.linear.kernel.shape[-1]`), or give the class a fixer with "
    "jaxprune.frameworks.nnx.register_resize, or use jaxprune.shrunk_function, which needs no change of the module."
)


def register_resize(cls: type[nnx.Module], fixer: Fixer) -> None:
    """Says how the attributes of a module class follow from the shapes of its Variables.

    Args:
      cls: the class; classes derived from it are served too.
      fixer: a function `(module, layer) -> {attribute: value}`. The module's Variables are cut already;
        `layer.parts(name, axis, count)` tells how many of some equal parts of an axis (heads, groups) are left.

    Example:
      >>> from flax import nnx
      >>> class Halves(nnx.Module):
      ...     def __init__(self, width, rngs):
      ...         self.width = width
      ...         self.linear = nnx.Linear(4, 2 * width, rngs=rngs)
      >>> register_resize(Halves, lambda module, layer: {"width": module.linear.kernel.shape[-1] // 2})
    """
    _FIXERS.register(cls, fixer)


@dataclasses.dataclass(frozen=True, eq=False)
class _Functional:
    """A module as a function of its state; the graph holds its attributes."""

    graph: nnx.GraphDef
    call: Callable[..., Any]

    def __call__(self, params: PyTree, *args: Any) -> Any:
        return self.call(nnx.merge(self.graph, params), *args)


def parameters(module: nnx.Module) -> dict[str, Any]:
    """The whole state of a module (parameters, statistics, random counters) as a plain dictionary of arrays.

    It is what `trace` traces, so what `jaxprune.shrink` and `jaxprune.shrunk_function` take for its model.

    Args:
      module: the module.

    Example:
      >>> from flax import nnx
      >>> sorted(parameters(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
      ['bias', 'kernel']
    """
    return nnx.to_pure_dict(nnx.state(module))


def trace(module: nnx.Module, *args: Any, call: Callable[..., Any] = default_call, **options: Any) -> Model:
    """Reads an NNX module: `jaxprune.trace` of it as a function of `parameters(module)`.

    Args:
      module: the module; it is not changed.
      args: the arguments, at some batch size; shapes are enough.
      call: what to do with them, a function `(module, *args)`; `module(*args)` if not given.
      options: those of `jaxprune.trace`.

    Returns:
      The model.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> module = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
      >>> trace(module, jnp.ones((1, 4)))
      Model(4 parameters, 2 sites, 1 groups)
    """
    return trace_function(_Functional(nnx.split(module)[0], call), parameters(module), *args, **options)


def resize(module: M, model: Model, plan: Plan, *, call: Callable[..., Any] | None = None, check: bool = True) -> M:
    """A smaller copy of a module: its Variables and arrays cut by the plan, its attributes set to fit.

    Where the head size of an `nnx.MultiHeadAttention` has been cut from d to d', the query's kernel and bias are
    multiplied by sqrt(d' / d), because the module divides by the sqrt(d') of what is left. Normalisations take means
    over what is left, as in `jaxprune.shrunk_function(model, plan, norm="resize")`.

    Args:
      module: the module that was traced; it is not changed.
      model: the trace of it, by `trace` or by `jaxprune.trace` of a function of its state.
      plan: which indices stay.
      call: a function `(module, *args)` that does what was traced, for the check; only needed for a model that
        `trace` has not made, and that is not `module(*args)`.
      check: whether to run the result once, against the replay.

    Returns:
      The smaller module.

    Raises:
      ValueError: the plan does not fit the model, or the result does not fit: a hand-written size.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> from flax import nnx
      >>> module = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
      >>> model = trace(module, jnp.ones((1, 4)))
      >>> small = resize(module, model, jp.Plan({name: [True, False, True] for name in model.groups}))
      >>> small.layers[0].out_features, small(jnp.ones((5, 4))).shape
      (2, (5, 2))
    """
    small = nnx.clone(module)
    # Plain arrays are part of the state as well as Variables are.
    state = nnx.state(small)
    values = dict(trees.leaves_with_paths(state))
    layers = {_path(path): node for path, node in nnx.iter_graph(small) if isinstance(node, nnx.Module)}
    arrays = CutArrays(model, plan, values, _REMEDY)
    for path, layer in layers.items():
        if isinstance(layer, nnx.MultiHeadAttention) and layer.attention_fn is nnx.dot_product_attention:
            # A normalised query forgets its scale, so the factor goes behind the normalisation.
            names = ("query_ln/scale",) if layer.normalize_qk else ("query/kernel", "query/bias")
            arrays.fold_scale(_join(path, "query/kernel"), -1, tuple(_join(path, name) for name in names))
    values |= arrays.small
    nnx.update(small, jax.tree.unflatten(jax.tree.structure(state), values.values()))
    shapes = {path: tuple(value.shape) for path, value in values.items()}
    for path, layer in layers.items():
        known = Layer(path, lambda name, path=path: shapes.get(_join(path, name)), arrays.cut)
        for name, value in _FIXERS.attributes(layer, known).items():
            setattr(layer, name, value)
    if check:
        traced = model.apply_fn.call if isinstance(model.apply_fn, _Functional) else default_call
        function = _Functional(nnx.split(small)[0], call or traced)
        _checks.check(function, model, plan, nnx.state(small), arrays.reference, _REMEDY, _name_of)
    return small


def _name_of(running: Sequence[Any]) -> str | None:
    modules = [each for each in running if isinstance(each, nnx.Module)]
    # The outermost that holds the innermost gives the longest path.
    paths = ((path, node) for root in modules for path, node in nnx.iter_graph(root))
    found = next((path for path, node in paths if node is modules[-1]), None)
    return None if found is None else f"{_path(found) or 'the module'} ({type(modules[-1]).__name__})"


def _path(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _like(old: Any, new: tuple[int, ...]) -> Any:
    """The trailing sizes that an attribute held: leading ones belong to a stack of layers."""
    return tuple(new[-len(old) :])


def _linear(module: nnx.Linear, layer: Layer) -> dict[str, Any]:
    inputs, outputs = layer.shape("kernel")[-2:]
    return {"in_features": inputs, "out_features": outputs}


def _linear_general(module: nnx.LinearGeneral, layer: Layer) -> dict[str, Any]:
    kernel = list(layer.shape("kernel"))
    outputs = [kernel.pop() for _ in module.out_features][::-1]
    inputs = [kernel.pop() for _ in module.in_features][::-1]
    batch = [kernel.pop() for _ in module.batch_axis][::-1]
    sizes = type(module.batch_axis)(zip(module.batch_axis, batch, strict=True))
    return {"in_features": tuple(inputs), "out_features": tuple(outputs), "batch_axis": sizes}


def _einsum(module: nnx.Einsum, layer: Layer) -> dict[str, Any]:
    new: dict[str, Any] = {"kernel_shape": _like(module.kernel_shape, layer.shape("kernel"))}
    if module.bias_shape is not None:
        new["bias_shape"] = _like(module.bias_shape, layer.shape("bias"))
    return new


def _conv(module: nnx.Conv, layer: Layer) -> dict[str, Any]:
    kernel = _like(module.kernel_shape, layer.shape("kernel"))
    groups = module.feature_group_count
    if groups > 1:
        groups, _ = layer.parts("kernel", -1, groups)
    return {
        "kernel_shape": kernel,
        "in_features": kernel[-2] * groups,
        "out_features": kernel[-1],
        "feature_group_count": groups,
    }


def _conv_transpose(module: nnx.ConvTranspose, layer: Layer) -> dict[str, Any]:
    kernel = _like(module.kernel_shape, layer.shape("kernel"))
    inputs, outputs = kernel[-2:][::-1] if module.transpose_kernel else kernel[-2:]
    return {"kernel_shape": kernel, "in_features": inputs, "out_features": outputs}


def _embed(module: nnx.Embed, layer: Layer) -> dict[str, Any]:
    number, features = layer.shape("embedding")[-2:]
    return {"num_embeddings": number, "features": features}


def _norm(module: nnx.Module, layer: Layer) -> dict[str, Any]:
    shape = layer.shape("scale", "bias", "mean")
    return {"num_features": shape[-1]} if shape and isinstance(getattr(module, "num_features", None), int) else {}


def _group_norm(module: nnx.GroupNorm, layer: Layer) -> dict[str, Any]:
    name = "scale" if layer.shape("scale") else "bias"
    if not layer.shape(name):
        return {}
    groups, size = layer.parts(name, -1, module.num_groups)
    return {"num_features": groups * size, "num_groups": groups, "group_size": size}


def _attention(module: nnx.MultiHeadAttention, layer: Layer) -> dict[str, Any]:
    inputs, heads, size = layer.shape("query/kernel")[-3:]
    key_inputs, key_heads, _ = layer.shape("key/kernel")[-3:]
    return {
        "in_features": inputs,
        "num_heads": heads,
        "head_dim": size,
        "qkv_features": math.prod((heads, size)),
        "in_kv_features": key_inputs,
        "num_kv_heads": key_heads,
        "out_features": layer.shape("out/kernel")[-1],
    }


def _cell(inputs: str, hidden: str) -> Fixer:
    return lambda module, layer: {
        "in_features": layer.shape(f"{inputs}/kernel")[-2],
        "hidden_features": layer.shape(f"{hidden}/kernel")[-2],
    }


def _lora(module: nnx.LoRA, layer: Layer) -> dict[str, Any]:
    return {"in_features": layer.shape("lora_a")[-2], "out_features": layer.shape("lora_b")[-1]}


register_resize(nnx.Linear, _linear)
register_resize(nnx.LinearGeneral, _linear_general)
register_resize(nnx.Einsum, _einsum)
register_resize(nnx.Conv, _conv)
register_resize(nnx.ConvTranspose, _conv_transpose)
register_resize(nnx.Embed, _embed)
for _class in (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.InstanceNorm):
    register_resize(_class, _norm)
register_resize(nnx.GroupNorm, _group_norm)
register_resize(nnx.MultiHeadAttention, _attention)
register_resize(nnx.LSTMCell, _cell("ii", "hi"))
for _class in (nnx.OptimizedLSTMCell, nnx.SimpleCell, nnx.GRUCell):
    register_resize(_class, _cell("dense_i", "dense_h"))
register_resize(nnx.LoRA, _lora)
