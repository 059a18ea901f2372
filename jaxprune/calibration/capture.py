"""Capture: a function that computes what `apply_fn` does, and returns statistics of the inputs of its matrices too.

No hooks, no module system: the function is traced, and evaluated again with a hand on the operands of the products that
consume parameters. What is covered is known before anything runs (`Model.coverage`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import trees
from jaxprune.calibration.inputs import covered_axes, measure
from jaxprune.calibration.statistics import Statistic
from jaxprune.tracing.evaluate import Evaluator
from jaxprune.tracing.graph import Graph, Node, Program
from jaxprune.tracing.inputs import Input, find_inputs, row_shape
from jaxprune.tracing.layers import read_layers
from jaxprune.trees import PyTree, Where

Weights = Callable[..., jax.Array]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values", "counts"], meta_fields=["inputs"])
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of the inputs of matrices: a pytree of sums, which adds, crosses `jit` and checkpoints.

    Matrices that share an input share its statistic; a matrix that is used several times has the sum of its uses.

    Attributes:
      values: the value of the statistic, by the name of the input.
      counts: float32[*stack, *batch], how many rows it was taken over, by the name of the input.
      inputs: pairs of the name of a matrix and the names of its inputs.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3))}
      >>> _, stats = capture(lambda p, x: x @ p["a"], jp.stats.gram)(params, jnp.ones((5, 2)))
      >>> stats["a"].tolist(), float(stats.count("a"))
      ([[5.0, 5.0], [5.0, 5.0]], 5.0)
    """

    values: dict[str, Any]
    counts: dict[str, jax.Array]
    inputs: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the matrices: paths of parameters, and `path#1`, ... for further parts of one."""
        return tuple(name for name, _ in self.inputs)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Any:
        """The value of the statistic for a matrix."""
        return functools.reduce(add, [self.values[source] for source in self._sources(name)])

    def count(self, name: str) -> jax.Array:
        """How many rows a matrix was multiplied with."""
        return functools.reduce(add, [self.counts[source] for source in self._sources(name)])

    def _sources(self, name: str) -> tuple[str, ...]:
        found = dict(self.inputs)
        if name not in found:
            raise KeyError(f"no statistics of {name!r}; there are {trees.list_paths(list(found))}.")
        return found[name]


def add(a: Any, b: Any) -> Any:
    """The sum of two statistics, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def capture(
    apply_fn: Callable[..., Any], stat: Statistic, *, where: Where = None, weights: Weights | None = None
) -> Callable[..., tuple[Any, Statistics]]:
    """Makes of a function one that returns `(out, statistics)`.

    Args:
      apply_fn: a pure function of parameters and arguments.
      stat: an additive statistic: `jp.stats.gram`, `column_norms`, `moments`, `absolute_mean`, or a function of
        your own from `(x, weights)` to a pytree of sums.
      where: the parameters whose inputs are looked at; all that are multiplied with data by default.
      weights: takes the arguments and gives what each row counts for, over the leading axes of the data (examples, or
        examples and positions): zero for padding. A loop over one of these axes gives each step its own. Axes are
        told apart by their sizes: where the function swaps two of the same size (as many examples as positions, and a
        product in time-major order), weights go to the wrong rows without an error. Take another batch size there.

    Returns:
      A pure function `(params, *args) -> (out, Statistics)`; jittable.

    Raises:
      ValueError: when called: `where` matches no parameter that is multiplied with data, or the weights do not fit.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
      >>> tapped = jax.jit(capture(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], jp.stats.column_norms))
      >>> out, stats = tapped(params, jnp.ones((5, 2)))
      >>> out.shape, stats["a"].tolist()
      ((5, 1), [5.0, 5.0])
    """

    def tapped(params: PyTree, *args: Any) -> tuple[Any, Statistics]:
        layers = read_layers(apply_fn, params, *args)
        matrices = layers.chosen(where, params)
        inputs, inputs_of = find_inputs(matrices, layers.program)
        tap = Tap(layers.program, inputs, stat, None if weights is None else weights(*args))
        outputs = tap([*jax.tree.leaves(params), *jax.tree.leaves(args)])
        found = tap.found
        values = {source.name: found[source.name][1] for source in inputs}
        counts = {source.name: found[source.name][0] for source in inputs}
        out = jax.tree.unflatten(jax.tree.structure(layers.outputs), outputs)
        return out, Statistics(values, counts, tuple(inputs_of.items()))

    return tapped


class Tap(Evaluator):
    """Evaluates a program, and collects a statistic of some inputs; loops hand theirs out, stacked or summed.

    Args:
      program: what to run.
      inputs: what to look at.
      stat: the statistic.
      weights: what each row counts for; None for 1.
    """

    def __init__(self, program: Program, inputs: Iterable[Input], stat: Statistic, weights: jax.Array | None = None):
        super().__init__(program)
        self.stat = stat
        self.weights = weights
        self.found: dict[str, Any] = {}
        self.at: dict[Node, list[Input]] = {}
        for source in inputs:
            self.at.setdefault(source.node, []).append(source)

    def inside(self, graph: Graph) -> list[Input]:
        """The inputs that are read in a graph, in loops and branches of it as well."""
        return [source for node in graph.everything() for source in self.at.get(node, ())]

    def step(self, node: Node, operands: list[Any], values: dict[int, Any]) -> list[Any]:
        """One node; bodies without an input to look at run as they were traced."""
        for source in self.at.get(node, ()):
            self.note({source.name: measure(source, operands, self.stat, self.weights)})
        if node.body is not None and self.inside(node.body):
            return self.run(node.body, [self.read(value, values) for value in node.body.inputs], values)
        if any(map(self.inside, node.subgraphs)):
            return _CONTROL_FLOW[node.name](self, node, operands)
        return super().step(node, operands, values)

    def note(self, found: Mapping[str, Any]) -> None:
        """Adds to what was found."""
        for name, value in found.items():
            self.found[name] = add(self.found[name], value) if name in self.found else value

    def apart(self, run: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """Runs something, and gives what was found in it apart from what was found before."""
        outer, self.found = self.found, {}
        outputs = run()
        inner, self.found = self.found, outer
        return outputs, inner

    def scan(self, node: Node, operands: list[Any]) -> list[Any]:
        """`lax.scan`: inputs of stacked parameters come out stacked, others summed over the steps."""
        (body,), params = node.subgraphs, node.params
        consts, carry = params["num_consts"], params["num_carry"]
        fixed, start, each = operands[:consts], operands[consts : consts + carry], operands[consts + carry :]
        stacked = {source.name for source in self.inside(body) if (node, True) in source.loops}
        weights = self.weights
        axis = None if stacked or weights is None else _time_axis(weights, node, self.inside(body))
        rows = None if axis is None else jnp.moveaxis(jnp.asarray(weights), axis, 0)

        def once(state: Any, slices: Any, row: Any) -> tuple[list[Any], dict[str, Any]]:
            self.weights = weights if row is None else row
            found = self.apart(lambda: self.run(body, [*fixed, *state, *slices]))
            self.weights = weights
            return found

        def step(state: Any, slices: Any) -> Any:
            (values, sums), (own, row) = state, slices
            outputs, found = once(values, own, row)
            sums = {name: add(total, found[name]) for name, total in sums.items()}
            return (outputs[:carry], sums), (outputs[carry:], {name: found[name] for name in sorted(stacked)})

        start = [jnp.asarray(value) for value in start]
        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (each, rows))
        _, shapes = jax.eval_shape(once, start, *first)
        zeros = _zeros({name: shape for name, shape in shapes.items() if name not in stacked})
        keywords = {key: params[key] for key in ("length", "reverse", "unroll")}
        (state, sums), (outputs, stacks) = lax.scan(step, (start, zeros), (each, rows), **keywords)
        self.note({**sums, **stacks})
        return [*state, *outputs]

    def while_loop(self, node: Node, operands: list[Any]) -> list[Any]:
        """`lax.while_loop`: sums over the steps, and over the runs of the test."""
        test, body = node.subgraphs
        first, second = node.params["cond_nconsts"], node.params["body_nconsts"]
        fixed_test, fixed_body = operands[:first], operands[first : first + second]

        def check(state: Any) -> Any:
            return self.run(test, [*fixed_test, *state])[0]

        def once(state: Any) -> tuple[Any, dict[str, Any]]:
            def steps() -> tuple[list[Any], Any]:
                outputs = self.run(body, [*fixed_body, *state])
                return outputs, check(outputs)

            return self.apart(steps)

        def step(carry: Any) -> Any:
            (state, _), sums = carry
            after, found = once(state)
            return after, {name: add(total, found[name]) for name, total in sums.items()}

        # The test of the loop is the last thing that a step does: only there can its inputs be added to the carry.
        start = [jnp.asarray(value) for value in operands[first + second :]]
        more = check(start)
        zeros = _zeros(jax.eval_shape(once, start)[1])
        (state, _), sums = lax.while_loop(lambda carry: carry[0][1], step, ((start, more), zeros))
        self.note(sums)
        return state

    def cond(self, node: Node, operands: list[Any]) -> list[Any]:
        """`lax.switch`: what a branch that is not taken would see counts as nothing."""

        def through(branch: Graph) -> Callable[..., Any]:
            return lambda *arrays: self.apart(lambda: self.run(branch, arrays))

        shapes: dict[str, Any] = {}
        for branch in node.subgraphs:
            shapes.update(jax.eval_shape(through(branch), *operands[1:])[1])

        def complete(branch: Graph) -> Callable[..., Any]:
            def call(*arrays: Any) -> Any:
                outputs, found = through(branch)(*arrays)
                return outputs, {**_zeros(shapes), **found}

            return call

        outputs, found = lax.switch(operands[0], [complete(branch) for branch in node.subgraphs], *operands[1:])
        self.note(found)
        return outputs


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)


def _time_axis(weights: jax.Array, node: Node, inside: Sequence[Input]) -> int | None:
    """The axis of the weights that a loop runs along; None where it runs along none."""
    if all(covered_axes(weights.shape, row_shape(source.site)) is not None for source in inside):
        return None  # each step sees all of the data
    axes = [k for k, size in enumerate(weights.shape) if size == node.params["length"]]
    if len(axes) > 1:
        raise ValueError(
            f"weights of shape {weights.shape}: the loop at {node.source} has {node.params['length']} steps, and could "
            "run along more than one of its axes. Calibrate with another batch size."
        )
    return axes[0] if axes and weights.ndim > 1 else None


_CONTROL_FLOW = {"scan": Tap.scan, "while": Tap.while_loop, "cond": Tap.cond}
