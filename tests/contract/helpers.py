"""What the contract suite runs on: one line per pruner, per optimiser, per wrapper; a model; a training loop."""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.states import SparsifyState

TARGET = 0.75
KERNEL_SIZE = 128
DATA = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)
STEPS = 6  # every schedule below ends before the last of these updates

# One line per pruner: masks move at several of the updates 0 to 5. A new pruner becomes one more line.
PRUNERS: dict[str, Callable[..., jp.Pruner]] = {
    "static": lambda s=TARGET, **kw: jp.pruners.static(s, where=".*kernel", **kw),
    "gmp": lambda s=TARGET, **kw: jp.pruners.gmp(s, begin=1, end=4, every=2, where=".*kernel", **kw),
    "set_": lambda s=TARGET, **kw: jp.pruners.set_(s, every=2, end=4, where=".*kernel", **kw),
    "rigl": lambda s=TARGET, **kw: jp.pruners.rigl(s, every=2, end=4, where=".*kernel", **kw),
    "granet": lambda s=TARGET, **kw: jp.pruners.granet(s, begin=1, end=4, every=2, where=".*kernel", **kw),
    "ste": lambda s=TARGET, **kw: jp.pruners.ste(s, begin=1, end=4, every=2, where=".*kernel", **kw),
    "sr_ste": lambda s=TARGET, **kw: jp.pruners.sr_ste(s, decay=1e-2, where=".*kernel", **kw),
    "acdc": lambda s=TARGET, **kw: jp.pruners.acdc(s, begin=1, end=4, every=2, where=".*kernel", **kw),
    "top_kast": lambda s=TARGET, **kw: jp.pruners.top_kast(s, backward_sparsity=0.5, where=".*kernel", **kw),
    "movement": lambda s=TARGET, **kw: jp.pruners.movement(s, begin=1, end=4, every=2, where=".*kernel", **kw),
    "soft_movement": lambda s=TARGET, **kw: jp.pruners.soft_movement(begin=1, every=2, where=".*kernel", **kw),
}
DENSE_STORAGE = [name for name, make in PRUNERS.items() if make().dense_parameters]
ZEROED = [name for name in PRUNERS if name not in DENSE_STORAGE]
NO_TARGET = ["soft_movement"]  # its sparsity emerges

OPTIMISERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lion": optax.lion,
    "adafactor": lambda lr: optax.adafactor(lr, min_dim_size_to_factor=4),
    "rmsprop": optax.rmsprop,
    "lamb": optax.lamb,
    "adabelief": optax.adabelief,
    "muon": optax.contrib.muon,
    "sign_sgd": optax.sign_sgd,
    "rprop": optax.rprop,
    "adagrad": optax.adagrad,
    "lbfgs": lambda lr: optax.lbfgs(lr, memory_size=2, linesearch=None),
}


def relaxed(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Optax's own arithmetic under JAX's standard promotion; jaxprune's stays strict."""
    tx = optax.with_extra_args_support(tx)

    def init(params: Any) -> Any:
        with standard_promotion():
            return tx.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        with standard_promotion():
            return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


@contextlib.contextmanager
def standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def is_kernel(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), tree)


def labels(tree: Any) -> Any:
    return jax.tree.map(lambda kernel: "kernel" if kernel else "other", is_kernel(tree))


def multi_steps(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.MultiSteps(tx, 2).gradient_transformation()


Wrap = Callable[[Callable[[Any], optax.GradientTransformation]], optax.GradientTransformation]
# Each takes a factory `learning_rate -> transformation`, so that `inject_hyperparams` can have its say.
WRAPPERS: dict[str, Wrap] = {
    "chain": lambda make: optax.chain(optax.clip_by_global_norm(1.0), make(0.05)),
    "masked": lambda make: optax.masked(make(0.05), is_kernel),
    "partition": lambda make: optax.partition({"kernel": make(0.05), "other": optax.sgd(0.1)}, labels),
    "MultiSteps": lambda make: multi_steps(make(0.05)),
    "inject_hyperparams": lambda make: optax.inject_hyperparams(lambda learning_rate: make(learning_rate))(
        learning_rate=0.05
    ),
    "apply_if_finite": lambda make: optax.apply_if_finite(make(0.05), 3),
}
PLACES = ["bare", *(f"{place}_{name}" for name in WRAPPERS for place in ("in", "around"))]
HOSTS = ["plain", "TrainState", "nnx"]
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}


class Case(NamedTuple):
    pruner: str
    optimiser: str
    place: str
    host: str
    dtype: str
    packed: bool

    @property
    def steps(self) -> int:
        return 2 * STEPS if self.place == "around_MultiSteps" else STEPS


def build(case: Case, **kwargs: Any) -> optax.GradientTransformation:
    """The transformation of a case."""
    place, _, wrapper = case.place.partition("_")

    def inner(learning_rate: Any) -> optax.GradientTransformation:
        optimiser = relaxed(OPTIMISERS[case.optimiser](learning_rate))
        # In float16 Optax's epsilons are lost, as in `g / (0 + eps)`, and no update can zero a weight that is NaN.
        finite = optax.chain(optimiser, optax.zero_nans(), optax.clip(0.1))
        return relaxed(finite) if case.dtype == "f16" else optimiser

    def sparse(optimiser: optax.GradientTransformation) -> optax.GradientTransformation:
        pruner = PRUNERS[case.pruner](**kwargs)
        return jp.sparsify(optimiser, pruner, key=jax.random.key(7), pack_masks=case.packed)

    if place == "bare":
        return sparse(inner(0.05))
    if place == "in":
        return sparse(relaxed(WRAPPERS[wrapper](inner)))
    return relaxed(WRAPPERS[wrapper](lambda learning_rate: sparse(inner(learning_rate))))


def covering(factors: dict[str, list[Any]], make: Callable[..., Any]) -> list[Any]:
    """Cases that hold every pair of values of two factors, found greedily from a fixed seed."""
    rng = random.Random(0)
    missing = {(a, x, b, y) for a, b in itertools.combinations(factors, 2) for x in factors[a] for y in factors[b]}
    cases = []
    while missing:
        a, x, b, y = min(missing, key=repr)
        drawn = [{n: rng.choice(options) for n, options in factors.items()} | {a: x, b: y} for _ in range(60)]
        hits = [{p for p in missing if values[p[0]] == p[1] and values[p[2]] == p[3]} for values in drawn]
        best = max(range(len(drawn)), key=lambda i: len(hits[i]))
        cases.append(make(**drawn[best]))
        missing -= hits[best]
    return cases


class Run(NamedTuple):
    """What is left after training."""

    params: Any
    state: Any
    first_state: Any
    traces: int


def initial_params(dtype: Any = jnp.float32) -> Any:
    key = jax.random.key(0)
    return {"layer": {"kernel": jax.random.normal(key, (16, 8), dtype) / 4, "bias": jnp.zeros(8, dtype)}}


def loss_fn(params: Any, shift: jax.Array) -> jax.Array:
    kernel, bias = (params["layer"][name].astype(jnp.float32) for name in ("kernel", "bias"))
    return jnp.mean((jnp.tanh(DATA @ kernel + bias[None]) - jnp.sin(3 * DATA[:, :8]) - shift) ** 2)


def grads_at(params: Any, state: Any, shift: jax.Array) -> tuple[jax.Array, Any]:
    return jax.value_and_grad(loss_fn)(jp.sparse_params(params, state), shift)


def assert_constant_types(before: Any, after: Any) -> None:
    """Fails at once, while tracing, if structure, shape or dtype are not constant."""
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert [aval[:2] for aval in avals(before)] == [aval[:2] for aval in avals(after)]


def copy(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, tree)


def make_step(tx: optax.GradientTransformation) -> tuple[Callable[..., Any], list[int]]:
    """A jitted, donating step, and a list that grows at each trace."""
    traces: list[int] = []

    def step(params: Any, state: Any, shift: jax.Array) -> tuple[Any, Any]:
        traces.append(1)
        value, grads = grads_at(params, state, shift)
        updates, new = tx.update(grads, state, params, value=value, grad=grads, value_fn=lambda p: loss_fn(p, shift))
        assert_constant_types(state, new)
        return optax.apply_updates(params, updates), new

    return jax.jit(step, donate_argnums=(0, 1)), traces


def train(tx: optax.GradientTransformation, params: Any, steps: int, *, state: Any = None, begin: int = 0) -> Run:
    """Plain Optax under jit with donated buffers."""
    step, traces = make_step(tx)
    first = tx.init(params) if state is None else state
    params, state = copy(params), copy(first)
    for i in range(begin, begin + steps):
        params, state = step(params, state, jnp.float32(i) / 10)
    return Run(params, state, first, len(traces))


def train_flax(tx: optax.GradientTransformation, params: Any, steps: int) -> Run:
    """Through `TrainState`."""
    traces: list[int] = []

    def step(ts: TrainState, shift: jax.Array) -> TrainState:
        traces.append(1)
        _, grads = grads_at(ts.params, ts.opt_state, shift)
        new = ts.apply_gradients(grads=grads)
        assert_constant_types(ts, new)
        return new

    step = jax.jit(step, donate_argnums=0)
    ts = TrainState.create(apply_fn=None, params=copy(params), tx=tx)
    ts = ts.replace(step=jnp.zeros((), jnp.int32), opt_state=copy(ts.opt_state))
    first = copy(ts.opt_state)
    for i in range(steps):
        ts = step(ts, jnp.float32(i) / 10)
    return Run(ts.params, ts.opt_state, first, len(traces))


class Layer(nnx.Module):
    def __init__(self, params: Any):
        self.kernel, self.bias = nnx.Param(params["kernel"].copy()), nnx.Param(params["bias"].copy())


class Net(nnx.Module):
    def __init__(self, params: Any):
        self.layer = Layer(params["layer"])


def train_nnx(tx: optax.GradientTransformation, params: Any, steps: int) -> Run:
    """Through `nnx.Optimizer`."""
    traces: list[int] = []

    def step(arrays: Any, shift: jax.Array) -> Any:
        traces.append(1)
        model, optimizer = nnx.merge(graph, arrays)
        pure = nnx.as_pure(nnx.state(model, nnx.Param))
        sparse = jp.sparse_params(pure, optimizer.opt_state)
        value, grads = jax.value_and_grad(loss_fn)(sparse, shift)
        boxed = jax.tree.structure(nnx.state(model, nnx.Param))
        grads = jax.tree.unflatten(boxed, jax.tree.leaves(grads))
        optimizer.update(model, grads, value=value, grad=grads)
        return nnx.state((model, optimizer))

    model = Net(params)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    first = copy(nnx.as_pure(optimizer.opt_state))
    graph, arrays = nnx.split((model, optimizer))
    step = jax.jit(step, donate_argnums=0)
    for i in range(steps):
        arrays = step(copy(arrays) if i == 0 else arrays, jnp.float32(i) / 10)
    model, optimizer = nnx.merge(graph, arrays)
    return Run(nnx.as_pure(nnx.state(model, nnx.Param)), nnx.as_pure(optimizer.opt_state), first, len(traces))


TRAIN = {"plain": train, "TrainState": train_flax, "nnx": train_nnx}


def is_sparsify(node: Any) -> bool:
    return isinstance(node, SparsifyState)


def sparsify_state(state: Any) -> Any:
    """The state of `sparsify`, wherever it is nested."""
    [found] = [node for node in jax.tree.leaves(state, is_leaf=is_sparsify) if is_sparsify(node)]
    return found


def pairs(*trees_: Any) -> Iterator[tuple[jax.Array, ...]]:
    return zip(*(jax.tree.leaves(tree) for tree in trees_), strict=True)


def bits(x: Any) -> Any:
    """An array's dtype, shape and bytes; of a PRNG key, those of its data."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    array = np.asarray(x)
    return array.dtype, array.shape, array.tobytes()


def assert_same(left: Any, right: Any) -> None:
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in pairs(left, right):
        assert bits(a) == bits(b)


def avals(tree: Any) -> list[Any]:
    return [(leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in jax.tree.leaves(tree)]


def assert_target(masks: Any) -> None:
    """The kernel keeps exactly its share, the bias everything."""
    assert int(masks["layer"]["kernel"].sum()) == round((1 - TARGET) * KERNEL_SIZE)
    assert bool(masks["layer"]["bias"].all())


def assert_zeros(params: Any, masks: Any) -> None:
    """Pruned weights are zero, kept ones finite."""
    for p, m in pairs(params, masks):
        assert bool(((p == 0) | m).all())
        assert bool(jnp.isfinite(p).all())
