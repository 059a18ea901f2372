"""Random programs: a pure function of a seed.

A `Builder` holds named parameters and a list of steps; each operation appends steps that read earlier values. A value
knows which of its axes is the channel axis, so that the operations work for channels first, last or in the middle, at
any rank. `make` strings operations together and closes with a projection.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]
Step = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Value:
    """A value in a program under construction: its number, shape and channel axis."""

    number: int
    shape: tuple[int, ...]
    axis: int

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def space(self) -> tuple[int, ...]:
        """The axes between batch and channels."""
        return tuple(k for k in range(1, len(self.shape)) if k != self.axis)


@dataclasses.dataclass(frozen=True)
class Program:
    """What a seed gives."""

    seed: int
    apply_fn: Callable[..., Any]
    params: Params
    args: tuple[Any, ...]
    operations: tuple[str, ...]


class Builder:
    """A program under construction."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.params: Params = {}
        self.args: list[Any] = []
        self.steps: list[tuple[Step, tuple[int, ...]]] = []
        self.shapes: list[Any] = []
        self.pool: list[Value] = []

    def param(self, *shape: int, scale: float | None = None, around: float = 0.0) -> str:
        """A new parameter, by name; scaled so that a product with it keeps its size, unless told otherwise."""
        name = f"p{len(self.params):02d}"
        spread = float(1.5 / np.sqrt(max(shape[0], 2))) if scale is None else scale
        self.params[name] = (around + spread * self.random.normal(size=shape)).astype(np.float32)
        return name

    def arg(self, array: Any) -> int:
        """A new argument, by position."""
        self.args.append(array)
        return len(self.args) - 1

    def choose(self, *options: Any) -> Any:
        """One of some options."""
        return options[int(self.random.integers(len(options)))]

    def chance(self, probability: float = 0.5) -> bool:
        """Whether to do something."""
        return bool(self.random.random() < probability)

    def emit(self, step: Step, *reads: Value, axis: int) -> Value:
        """Appends `step(params, args, *values)`."""
        operands = [jax.ShapeDtypeStruct(value.shape, jnp.float32) for value in reads]
        shape = jax.eval_shape(step, self.params, self.args, *operands).shape
        value = Value(len(self.steps), tuple(shape), axis)
        self.steps.append((step, tuple(read.number for read in reads)))
        return value

    def partner(self, value: Value, same_channels: bool = True) -> Value | None:
        """An earlier value that can be added to this one, or only be concatenated with it."""

        def fits(other: Value) -> bool:
            sizes = zip(other.shape, value.shape, strict=False)
            return (
                other.number != value.number
                and len(other.shape) == len(value.shape)
                and other.axis == value.axis
                and all(a == b for k, (a, b) in enumerate(sizes) if same_channels or k != value.axis)
            )

        found = [other for other in self.pool if fits(other)]
        return self.choose(*found) if found else None

    def finish(self, seed: int, outputs: list[Value], names: list[str]) -> Program:
        """The function that runs the steps."""
        steps, wanted = tuple(self.steps), tuple(value.number for value in outputs)

        def apply_fn(params: Params, *args: Any) -> Any:
            values: list[Any] = []
            for step, reads in steps:
                values.append(step(params, args, *(values[k] for k in reads)))
            return tuple(values[k] for k in wanted)

        return Program(seed, apply_fn, self.params, tuple(self.args), tuple(names))


def along(vector: Any, rank: int, axis: int) -> Any:
    """A vector laid along one axis of a rank."""
    return vector.reshape([-1 if k == axis else 1 for k in range(rank)])


def letters(rank: int) -> str:
    """The names of axes for einsum."""
    return "abcdefgh"[:rank]


def project(b: Builder, v: Value, width: int, bias: bool = True) -> Value:
    """A product with a kernel along the channel axis, as an einsum; the kernel in either layout."""
    names = letters(len(v.shape))
    c = names[v.axis]
    turned = b.chance(0.3)
    kernel = b.param(*((width, v.channels) if turned else (v.channels, width)))
    equation = f"{names},{'z' + c if turned else c + 'z'}->{names.replace(c, 'z')}"
    offset = b.param(width, scale=0.5) if bias else None

    def step(params: Params, args: Any, x: Any) -> Any:
        y = jnp.einsum(equation, x, params[kernel])
        return y if offset is None else y + along(params[offset], y.ndim, v.axis)

    return b.emit(step, v, axis=v.axis)


def start(b: Builder) -> Value:
    """The input: an array or the rows of an embedding, at a random rank and layout."""
    rank, width = b.choose(2, 3, 3, 4, 4, 5), b.choose(4, 6, 8)
    space = [b.choose(2, 4) for _ in range(rank - 2)]
    if b.chance(0.2):
        table = b.param(5, width, scale=1.0)
        ids = b.arg(b.random.integers(0, 5, (2, *space)).astype(np.int32))
        v = b.emit(lambda params, args: jnp.take(jnp.asarray(params[table]), args[ids], axis=0), axis=rank - 1)
        return v
    axis = b.choose(1, rank - 1)
    shape = [2, *space]
    shape.insert(axis, b.choose(3, 4))
    x = b.arg(b.random.normal(size=shape).astype(np.float32))
    v = b.emit(lambda params, args: args[x], axis=axis)
    return project(b, v, width)


def end(b: Builder, v: Value) -> Value:
    """The last projection, after a mean over space, or of everything flattened, or of each position."""
    kind = b.choose("mean", "flatten", "positions")
    space = v.space
    if kind == "mean" and space:
        v = b.emit(lambda params, args, x: x.mean(space), v, axis=1)
    elif kind == "flatten" and space:
        v = b.emit(lambda params, args, x: x.reshape(x.shape[0], -1), v, axis=1)
    return project(b, v, 3, bias=b.chance())


def make(seed: int, operations: dict[str, Callable[[Builder, Value], Value | None]]) -> Program:
    """The program of a seed, out of the given operations."""
    b = Builder(seed)
    v = start(b)
    b.pool.append(v)
    used: list[str] = []
    names = list(operations)
    for _ in range(int(b.random.integers(3, 8))):
        name = b.choose(*names)
        source = v if b.chance(0.85) else b.choose(*b.pool)
        made = operations[name](b, source)
        if made is None or made.channels < 2 or np.prod(made.shape) > 1500:
            continue
        used.append(name)
        v = made
        b.pool.append(v)
    outputs = [end(b, v)]
    if b.chance(0.15):
        outputs.append(end(b, b.choose(*b.pool)))
    return b.finish(seed, outputs, used)
