"""Operands: what data is multiplied with, where a function masks or scales a parameter before it uses it.

Most functions multiply with a view of a parameter: the same values, in another order or dtype. Of the others, what they
make of the parameter is evaluated here, so that it is what is scored, repaired and measured. How they make it decides
what can be done: where each element is the parameter's times a number (a mask, a scale), new values of the operand give
new values of the parameter. Where only zeros stay zeros (a weight norm), the parameter is masked. Where they do not
(standardised weights, a sum with something else), pruning it would leave the operand dense.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.tracing.evaluate import Evaluator
from jaxprune.tracing.graph import Literal, Node, Program
from jaxprune.tracing.graph import Operand as Value
from jaxprune.tracing.layers import Layers
from jaxprune.tracing.matrices import Arrangement, Matrix
from jaxprune.tracing.sites import Site
from jaxprune.tracing.views import Pointwise, Stacked

Leaves = Sequence[Any]
# Rounding to a narrow dtype on the way is no change of values; what else functions do to values is more than this.
_ROUNDING = 0.02


@dataclasses.dataclass(frozen=True)
class Use:
    """What a function makes of one parameter while all others stay as they are.

    Attributes:
      weights: gives W, float32[*stack, *batch, out, in], for values of the parameter.
      linear: whether each element of W is that of the parameter times a number.
      note: what a reader should know, or `""`.
    """

    weights: Callable[[Any], jax.Array]
    linear: bool
    note: str

    def scale(self, leaf: Any) -> jax.Array | None:
        """The numbers, in the shape of W, where there are such."""
        return self.weights(jnp.ones_like(leaf)) if self.linear else None


@dataclasses.dataclass(frozen=True, eq=False)
class Operand:
    """What data is multiplied with as one matrix, as a function of all parameters.

    Attributes:
      matrix: the matrix.
      recipes: how values are made.
      linear: whether each element is that of the parameter times a number; known after `examined`.
    """

    matrix: Matrix
    recipes: "_Recipes"
    linear: bool = False

    def weights(self, leaves: Leaves, index: Sequence[int] = (), site: Site | None = None) -> jax.Array:
        """W, float32[*stack, *batch, out, in], as the first operation sees it; of one layer of a stack at `index`."""
        site = self.matrix.sites[0] if site is None else site
        loops = [step.loop for step in site.view if isinstance(step, Stacked) and step.loop is not None]

        def at(steps: tuple[Any, ...]) -> Any:
            if len(steps) < len(loops):
                length = loops[len(steps)].params["length"]
                return jax.vmap(lambda k: at((*steps, k)))(jnp.arange(length, dtype=jnp.int32))
            value = site.node.inputs[site.operand]
            return self.recipes.make(value, leaves, dict(zip(loops, steps, strict=True)))

        operand = jnp.asarray(at(tuple(np.int32(k) for k in index)))
        return self.matrix.arrangement.from_operand(operand, len(loops) - len(index)).astype(jnp.float32)

    def use(self, leaves: Leaves, index: Sequence[int] = ()) -> Use:
        """The operand as a function of its own parameter."""
        others, k = list(leaves), self.matrix.leaf

        def weights(leaf: Any) -> jax.Array:
            return self.weights([*others[:k], leaf, *others[k + 1 :]], index)

        note = f"masked only: the function changes its values before use ({', '.join(_steps(self.matrix.arrangement))})"
        return Use(weights, self.linear, "" if self.linear else note)

    def examined(self, leaves: Leaves) -> tuple["Operand", str]:
        """The operand with what evaluating it tells, and why it cannot be pruned, or `""`."""
        if reason := self.ambiguous(leaves):
            return self, reason
        weights, leaf = self.use(leaves).weights, jnp.asarray(leaves[self.matrix.leaf])
        view, value = self.matrix.arrangement.to_matrix, weights(leaf)
        # At ones it is the scale, if there is one. Twice the parameter tells a norm that happens to be one.
        scaled = weights(jnp.ones_like(leaf)) * view(leaf).astype(jnp.float32)
        if _close(value, scaled) and _close(weights(2 * leaf), 2 * value):
            return dataclasses.replace(self, linear=True), ""
        some = np.random.default_rng(0).integers(0, 2, leaf.shape, bool)  # jax.random takes seconds to compile
        masked = weights(jnp.where(some, leaf, jnp.zeros((), leaf.dtype)))
        if _zero_outside(masked, view(some)):
            return self, ""
        steps = ", ".join(_steps(self.matrix.arrangement))
        return self, f"its zeros are no zeros of what data is multiplied with: the function changes them ({steps})"

    def ambiguous(self, leaves: Leaves) -> str:
        """Why the operand is not one matrix, or `""`."""
        ones = [*leaves]
        ones[self.matrix.leaf] = jnp.ones_like(leaves[self.matrix.leaf])
        first, *others = self.matrix.sites
        pairs = ((given, site) for given in (leaves, ones) for site in others)
        if not all(_close(self.weights(given), self.weights(given, site=site)) for given, site in pairs):
            return "operations change its values in different ways before they use it"
        own = {step.loop for step in first.view if isinstance(step, Stacked)}
        if not self.recipes.loops(first.node.inputs[first.operand]) <= own:
            return "a loop changes its values in another way at each step"
        return ""


def _steps(arrangement: Arrangement) -> list[str]:
    return [step.primitive for step in arrangement.view if isinstance(step, Pointwise)]


# Compiled by shape: layers that are alike share it.
@jax.jit
def _close(a: jax.Array, b: jax.Array) -> jax.Array:
    largest = jnp.max(jnp.abs(b), initial=0, where=jnp.isfinite(b))
    return jnp.all(jnp.isclose(a, b, rtol=_ROUNDING, atol=1e-6 * largest, equal_nan=True))


@jax.jit
def _zero_outside(weights: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(weights) & (mask | (weights == 0)))


def find_operands(layers: Layers, matrices: Iterable[Matrix]) -> dict[str, Operand]:
    """The operands, by the name of the matrix, that are more than a view of a parameter; mostly there are none."""
    found = [matrix for matrix in matrices if not matrix.arrangement.exact]
    if not found:
        return {}
    recipes = _Recipes(layers.program)
    return {matrix.name: Operand(matrix, recipes) for matrix in found}


def as_weights(leaf: Any, operand: Any, arrangement: Arrangement, index: Sequence[Any] = ()) -> jax.Array:
    """W in float32: the operand where there is one to itself, else the view of the parameter."""
    return (arrangement.to_matrix(leaf, index) if operand is None else operand).astype(jnp.float32)


def unscaled(weights: jax.Array, scale: jax.Array | None) -> jax.Array:
    """The values of a parameter that a function makes weights of by a scale; where that is 0, any will do."""
    return weights if scale is None else weights / jnp.where(scale == 0, 1, scale)


class _Recipes:
    """How the values of a program that do not depend on the data are made of parameters and constants."""

    def __init__(self, program: Program):
        self.program = program
        self.evaluator = Evaluator(program)
        self.makers = {value: node for node in program.graph.everything() for value in node.outputs}
        self.leaves = {value: k for k, value in enumerate(program.graph.inputs)}
        self.handed: dict[int, tuple[Value, Node | None]] = {}  # what goes into a body, and the loop that slices it
        for node in program.graph.everything():
            for outer, inner, is_slice in _handed(node):
                self.handed[inner] = outer, node if is_slice else None

    def make(self, value: Value, leaves: Leaves, steps: Mapping[Node, Any]) -> Any:
        """A value at given steps of the loops around it; at the first step of all others."""
        made: dict[int, Any] = {}

        def read(value: Value) -> Any:
            if isinstance(value, Literal):
                return np.asarray(value.value, value.aval.dtype)
            if value in made:
                return made[value]
            if value in self.leaves:
                return leaves[self.leaves[value]]
            if value in self.handed:
                outer, loop = self.handed[value]
                whole, step = read(outer), 0 if loop is None else steps.get(loop, 0)
                made[value] = whole if loop is None else lax.dynamic_index_in_dim(whole, step, 0, keepdims=False)
            elif value in self.makers:
                node = self.makers[value]
                outputs = self.evaluator.step(node, [read(operand) for operand in node.inputs], {})
                made.update(zip(node.outputs, outputs, strict=True))
            else:
                return self.program.constants[value]
            return made[value]

        return read(value)

    def loops(self, value: Value) -> set[Node]:
        """The loops of which each step has a value of its own."""
        found: set[Node] = set()
        waiting, seen = [value], set()
        while waiting:
            value = waiting.pop()
            if isinstance(value, Literal) or value in seen:
                continue
            seen.add(value)
            if value in self.handed:
                outer, loop = self.handed[value]
                waiting.append(outer)
                found |= set() if loop is None else {loop}
            elif value in self.makers:
                waiting.extend(self.makers[value].inputs)
        return found


def _handed(node: Node) -> Iterable[tuple[Value, int, bool]]:
    """What a node hands to its bodies, as what, and whether slice by slice. What a loop changes is data."""
    params = node.params
    if node.name == "scan":
        whole = params["num_consts"] + params["num_carry"]
        for k, inner in enumerate(node.subgraphs[0].inputs):
            yield node.inputs[k], inner, k >= whole
    elif node.name == "while":
        test, body = node.subgraphs
        first, second = params["cond_nconsts"], params["body_nconsts"]
        state = node.inputs[first + second :]
        given = (*node.inputs[:first], *state), (*node.inputs[first : first + second], *state)
        for graph, operands in zip((test, body), given, strict=True):
            yield from ((outer, inner, False) for outer, inner in zip(operands, graph.inputs, strict=True))
    elif node.name == "cond":
        for graph in node.subgraphs:
            yield from ((outer, inner, False) for outer, inner in zip(node.inputs[1:], graph.inputs, strict=True))
