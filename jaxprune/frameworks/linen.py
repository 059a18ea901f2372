"""Flax Linen: the original module object runs on smaller variables.

A Linen module holds sizes as fields (`features`, `num_heads`) and checks them against the parameters. `follow_shapes`
is a context in which the parameters have the last word: before a method of a layer runs, its fields are set from the
shapes that are bound to it, and set back afterwards. That also holds under `nn.scan`, `nn.remat`, `jax.jit` and
`jax.grad`, with mutable collections and with dropout.

    small = linen.shrink(model, plan, variables)
    with linen.follow_shapes(model, plan):
        outputs = module.apply(small, x)

`follow_shapes` is a decorator as well: `apply_fn = linen.follow_shapes(model, plan)(module.apply)`, which is what a
`TrainState` wants.
"""

import contextlib
import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxprune import shrinking, trees
from jaxprune.frameworks import _checks
from jaxprune.frameworks._layers import Cut, Fixer, Fixers, Layer
from jaxprune.shrinking import Plan
from jaxprune.tracing import Model
from jaxprune.trees import PyTree

__all__ = ["follow_shapes", "register_resize", "shrink"]

_FIXERS = Fixers()
_REMEDY = (
    "Read the size from the input or from a parameter's shape, or give the class a fixer with "
    "jaxprune.frameworks.linen.register_resize, or use jaxprune.shrunk_function, which needs no change of the module."
)


def register_resize(cls: type[nn.Module], fixer: Fixer) -> None:
    """Says how the fields of a module class follow from the shapes of its parameters.

    Needed only for a field that the module computes with. The shapes that `self.param` is asked for follow by
    themselves.

    Args:
      cls: the class; classes derived from it are served too.
      fixer: a function `(module, layer) -> {field: value}`; `layer.shape("kernel")` is the shape that is bound.

    Example:
      >>> import flax.linen as nn
      >>> class Halves(nn.Module):
      ...     width: int
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.Dense(2 * self.width)(x)[:, : self.width]
      >>> register_resize(Halves, lambda module, layer: {"width": layer.shape("Dense_0/kernel")[-1] // 2})
    """
    _FIXERS.register(cls, fixer)


@contextlib.contextmanager
def follow_shapes(model: Model | None = None, plan: Plan | None = None) -> Iterator[None]:
    """A context (or a decorator) in which Linen modules take their sizes from the variables they are given.

    Normalisations take means over what is left, as the same module built smaller would: what runs here agrees with
    `jaxprune.shrunk_function(model, plan, norm="resize")`. An error inside gets a note that names the module, the line
    and the remedy.

    Args:
      model: the traced model; with `plan`, tells how many groups a `GroupNorm` has left. Not needed otherwise.
      plan: which indices stay.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> module = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
      >>> variables = module.init(jax.random.key(0), jnp.ones((1, 4)))
      >>> model = jp.trace(module.apply, variables, jnp.ones((1, 4)))
      >>> plan = jp.Plan({name: [True, False, True] for name in model.groups})
      >>> small = shrink(model, plan, variables)
      >>> with follow_shapes():
      ...     module.apply(small, jnp.ones((5, 4))).shape
      (5, 2)
    """
    cut = Cut(model, plan) if model is not None and plan is not None else None
    with _following(cut, []):
        yield


def shrink(model: Model, plan: Plan, variables: PyTree, *, check: bool = True) -> PyTree:
    """Cuts the variables of a Linen module so that the module itself can run on them, under `follow_shapes`.

    It is `jaxprune.shrink`, and where the head size of an `nn.MultiHeadDotProductAttention` has been cut from d to d',
    the query's kernel and bias are multiplied by sqrt(d' / d): the module divides by the sqrt(d') of what is left, but
    has been trained with sqrt(d). Cut an optimiser's state with `jaxprune.shrink`.

    Args:
      model: the traced model; its function must have called the module's `apply`.
      plan: which indices stay.
      variables: the variables that were traced.
      check: whether to run the module once on the result, against the replay.

    Returns:
      The smaller variables.

    Raises:
      ValueError: the plan does not fit, or the module does not fit the smaller variables: a hand-written size.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> module = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
      >>> variables = module.init(jax.random.key(0), jnp.ones((1, 4)))
      >>> model = jp.trace(module.apply, variables, jnp.ones((1, 4)))
      >>> plan = jp.Plan({name: [True, False, True] for name in model.groups})
      >>> shrink(model, plan, variables)["params"]["layers_2"]["kernel"].shape
      (2, 2)
    """
    small = shrinking.shrink(model, plan, variables)
    cut, attentions = Cut(model, plan), []
    # A function that is jitted already may have been traced at these shapes, and would not be run again.
    apply: Any = model.apply_fn
    if isinstance(apply, jax.stages.Wrapped):
        apply = inspect.unwrap(apply, stop=lambda each: not isinstance(each, jax.stages.Wrapped))

    def following(params: PyTree, *args: Any) -> Any:
        with _following(cut, attentions):
            return apply(params, *args)

    with _checks.named_misfits(_REMEDY, _name_of):
        jax.eval_shape(following, small, *model.args)
    folded = _fold_scales(cut, attentions, small)
    if check:
        _checks.check(following, model, plan, folded, small, _REMEDY, _name_of)
    return folded


def _fold_scales(cut: Cut, attentions: list[tuple[str, bool]], small: PyTree) -> PyTree:
    factors: dict[int, float] = {}
    for path, normalised in attentions:
        kernel = cut.position(_join(path, "query/kernel"))
        # A normalised query forgets its scale, so the factor goes behind the normalisation.
        for name in ("query_ln/scale",) if normalised else ("query/kernel", "query/bias"):
            position = cut.position(_join(path, name))
            if kernel is not None and position is not None:
                factors[position] = cut.scale(kernel, -1)
    leaves = [
        leaf * jnp.asarray(factors[k], leaf.dtype)
        if factors.get(k, 1.0) != 1.0 and not isinstance(leaf, jax.ShapeDtypeStruct)
        else leaf
        for k, leaf in enumerate(jax.tree.leaves(small))
    ]
    return jax.tree.unflatten(jax.tree.structure(small), leaves)


@contextlib.contextmanager
def _following(cut: Cut | None, attentions: list[tuple[str, bool]]) -> Iterator[None]:
    """The context itself; notes the path of every attention whose scale follows its head size, and if it normalises."""

    def intercept(method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if module.scope is None:
            return method(*args, **kwargs)
        if isinstance(module, nn.MultiHeadDotProductAttention) and module.attention_fn is nn.dot_product_attention:
            attentions.append((_join(*module.path), module.normalize_qk))
        argument = args[0] if args else kwargs.get("inputs")  # as every layer of Linen names it
        # Cells are asked for a first carry before any method of theirs is called.
        inside = [value for value in vars(module).values() if isinstance(value, nn.RNNCellBase)]
        with contextlib.ExitStack() as stack:
            for each in (module, *inside):
                if each.scope is not None:
                    stack.enter_context(_fitted(each, cut, argument))
            try:
                return method(*args, **kwargs)
            except Exception as error:
                # The innermost module is the one to be named; those around it pass the error on.
                if not any(_REMEDY in note for note in getattr(error, "__notes__", ())):
                    error.add_note(_checks.describe(error, _REMEDY, _name_of))
                raise

    token = _CURRENT.set(cut)
    try:
        with _carries_follow(), nn.intercept_methods(intercept):
            yield
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def _fitted(module: nn.Module, cut: Cut | None, argument: Any = None) -> Iterator[None]:
    """A bound module with its fields set from its variables, for as long as the context lasts."""
    bound = nn.unbox(module.variables.get("params", {}))
    shapes = {path: jnp.shape(leaf) for path, leaf in trees.leaves_with_paths(bound)}
    layer = Layer(_join(*module.path), shapes.get, cut, argument)
    # Without parameters there is nothing to follow: they are being initialised.
    fields = _FIXERS.attributes(module, layer) if shapes else {}
    fields |= {"param": functools.partial(_param, module)}
    before = {name: vars(module)[name] for name in fields if name in vars(module)}
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    try:
        yield
    finally:
        for name in fields:
            if name in before:
                object.__setattr__(module, name, before[name])
            else:
                object.__delattr__(module, name)


def _param(module: nn.Module, name: str, init_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`module.param` that does not compare the shape of what is there with what is asked for."""
    own = type(module).param
    if not module.has_variable("params", name):
        return own(module, name, init_fn, *args, **kwargs)
    value = module.get_variable("params", name)
    kept = {key: kwargs[key] for key in ("unbox",) if key in kwargs}
    return own(module, name, lambda *_: value, **kept)


def _name_of(running: Sequence[Any]) -> str | None:
    modules = [each for each in running if isinstance(each, nn.Module) and each.scope is not None]
    return f"{_join(*modules[-1].path) or 'the module'} ({type(modules[-1]).__name__})" if modules else None


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


# A cell makes its first carry in a method that no interceptor sees, and that code which scans over a cell by hand calls
# on a cell made a line before. So that method looks up the sizes itself while a context is open.
_CURRENT: contextvars.ContextVar[Cut | None] = contextvars.ContextVar("jaxprune_cut", default=None)
_FOLLOWING: contextvars.ContextVar[bool] = contextvars.ContextVar("jaxprune_following", default=False)
_LOCK = threading.Lock()
_ORIGINALS: dict[type, Callable[..., Any]] = {}
_DEPTH = 0


@contextlib.contextmanager
def _carries_follow() -> Iterator[None]:
    global _DEPTH
    with _LOCK:
        _DEPTH += 1
        for cls in _cells(nn.RNNCellBase) if _DEPTH == 1 else ():
            _ORIGINALS[cls] = cls.__dict__["initialize_carry"]
            cls.initialize_carry = _following_carry(_ORIGINALS[cls])
    token = _FOLLOWING.set(True)
    try:
        yield
    finally:
        _FOLLOWING.reset(token)
        with _LOCK:
            _DEPTH -= 1
            while _DEPTH == 0 and _ORIGINALS:
                cls, original = _ORIGINALS.popitem()
                cls.initialize_carry = original


def _cells(cls: type) -> Iterator[Any]:
    if "initialize_carry" in cls.__dict__:
        yield cls
    for derived in cls.__subclasses__():
        yield from _cells(derived)


def _following_carry(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def initialize_carry(self: nn.RNNCellBase, *args: Any, **kwargs: Any) -> Any:
        if not _FOLLOWING.get() or self.scope is None:
            return original(self, *args, **kwargs)
        with _fitted(self, _CURRENT.get()):
            return original(self, *args, **kwargs)

    return initialize_carry


def _last(name: str, field: str = "features") -> Fixer:
    return lambda module, layer: {field: layer.shape(name)[-1]}


def _dense_general(module: nn.DenseGeneral, layer: Layer) -> dict[str, Any]:
    if isinstance(module.features, int):
        return {"features": layer.shape("kernel")[-1]}
    return {"features": layer.shape("kernel")[-len(module.features) :]}


def _conv(module: nn.Conv, layer: Layer) -> dict[str, Any]:
    kernel = layer.shape("kernel")
    groups = module.feature_group_count
    if groups > 1:
        groups = jnp.shape(layer.argument)[-1] // kernel[-2]
    return {"features": kernel[-1], "feature_group_count": groups}


def _conv_transpose(module: nn.ConvTranspose, layer: Layer) -> dict[str, Any]:
    return {"features": layer.shape("kernel")[-2 if module.transpose_kernel else -1]}


def _group_norm(module: nn.GroupNorm, layer: Layer) -> dict[str, Any]:
    name = "scale" if module.use_scale else "bias"
    if not layer.shape(name):
        return {}
    if module.num_groups is not None:
        return {"num_groups": layer.parts(name, -1, module.num_groups)[0]}
    channels = layer.full_size(name, -1)
    assert module.group_size is not None
    return {"group_size": layer.parts(name, -1, channels // module.group_size)[1]}


def _attention(module: nn.MultiHeadDotProductAttention, layer: Layer) -> dict[str, Any]:
    heads, size = layer.shape("query/kernel")[-2:]
    fields = {"num_heads": heads, "qkv_features": heads * size, "out_features": layer.shape("out/kernel")[-1]}
    return fields


register_resize(nn.Dense, _last("kernel"))
register_resize(nn.DenseGeneral, _dense_general)
register_resize(nn.Einsum, lambda module, layer: {"shape": layer.shape("kernel")[-len(module.shape) :]})
register_resize(nn.Conv, _conv)
register_resize(nn.ConvLocal, _last("kernel"))
register_resize(nn.ConvTranspose, _conv_transpose)
register_resize(
    nn.Embed,
    lambda module, layer: dict(zip(("num_embeddings", "features"), layer.shape("embedding")[-2:], strict=True)),
)
register_resize(nn.GroupNorm, _group_norm)
register_resize(nn.MultiHeadDotProductAttention, _attention)
register_resize(nn.LSTMCell, _last("hi/kernel"))
register_resize(nn.OptimizedLSTMCell, _last("hi/kernel"))
# The kernel makes the four gates of each feature.
register_resize(nn.ConvLSTMCell, lambda module, layer: {"features": layer.shape("hh/kernel")[-2]})
register_resize(nn.GRUCell, _last("hn/kernel"))
register_resize(nn.MGUCell, _last("hn/kernel"))
register_resize(nn.SimpleCell, _last("h/kernel"))
