"""`trace`: one look at a model, and everything that is read from it."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxprune import trees
from jaxprune.tracing import dims
from jaxprune.tracing.axes import Axes, Reason, Sizes
from jaxprune.tracing.cost import Cost, cost
from jaxprune.tracing.coverage import Coverage, find_coverage
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.explain import explain
from jaxprune.tracing.graph import Graph, Literal, Operand, Program
from jaxprune.tracing.groups import Group, find_groups
from jaxprune.tracing.layers import Layers, abstract, read_layers
from jaxprune.tracing.rules import RULES, Rule
from jaxprune.tracing.sites import CONVOLUTION, GATHER, Roles, Site
from jaxprune.trees import PyTree, Where


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What one trace of `apply_fn(params, *args)` tells.

    Attributes:
      apply_fn: the function.
      params: the abstract parameters.
      args: the abstract arguments.
      layers: the graph of the trace, and the operations that consume parameters.
      groups: the indices of parameters that can be removed, by id.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
      >>> model
      Model(2 parameters, 2 sites, 1 groups)
    """

    apply_fn: Callable[..., Any]
    params: PyTree
    args: tuple[Any, ...]
    layers: Layers
    axes: Axes
    used: frozenset[int]
    groups: Mapping[str, Group]
    atoms: Mapping[str, Dim]

    @property
    def paths(self) -> tuple[str, ...]:
        """The path of each parameter, in flattening order."""
        return self.layers.paths

    @property
    def program(self) -> Program:
        """The flat graph of the trace."""
        return self.layers.program

    @property
    def outputs(self) -> PyTree:
        """The abstract outputs."""
        return self.layers.outputs

    @property
    def sites(self) -> tuple[Site, ...]:
        """The operations that consume parameters."""
        return self.layers.sites

    @property
    def roles(self) -> Roles:
        """What the function does with each axis of each parameter."""
        return self.layers.roles

    def coverage(
        self, where: Where = None, *, stat: Callable[[Any, Any], Any] | None = None, strict: bool = False
    ) -> Coverage:
        """Says which parameters a calibration has statistics of, and why it has none of the others.

        With a statistic it also says what a calibration will hold in memory; nothing is computed.

        Args:
          where: the parameters in question; floating ones with two dimensions or more by default.
          stat: a statistic, such as `jp.stats.gram`: the shape and the bytes of its value for each input.
          strict: raise where a parameter is not covered.

        Returns:
          The coverage; prints as text.

        Raises:
          ValueError: `where` matches nothing, or a parameter is not covered under `strict`.

        Example:
          >>> import jax.numpy as jnp
          >>> import jaxprune as jp
          >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((5, 3))}
          >>> model = jp.trace(lambda p, x: x @ p["a"] + p["b"], params, jnp.ones((5, 2)))
          >>> model.coverage().covered
          {'a': ('a',)}
          >>> print(model.coverage("a", stat=jp.stats.gram))
          1 of 1 parameters are covered
          the statistics of 1 inputs hold 16 bytes
            a: float32[2, 2], 16 bytes
        """
        return find_coverage(self.layers, jax.tree.leaves(trees.resolve_where(where, self.params)), strict, stat)

    def explain(self, path: str, axis: int | None = None) -> str:
        """Says in words what an axis of a parameter is: what it is tied to, or why it must stay as it is.

        Args:
          path: the parameter.
          axis: the axis; None for all of them, and for what reads the parameter.

        Returns:
          A few lines of text.

        Raises:
          ValueError: there is no such parameter or axis.

        Example:
          >>> import jax.numpy as jnp
          >>> import jaxprune as jp
          >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
          >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
          >>> print(model.explain("a", 1))
          a axis 1 (3 indices, out) is the group 'a:1': tied to b axis 0 (in). To zero the weights that read an index
          is the same as to remove it.
          >>> print(model.explain("a", 0))
          a axis 0 (2 indices, in) stays as it is: it is an axis of an argument.
        """
        return explain(self, path, axis)

    def cost(self, masks: PyTree = None, plan: Any = None) -> Cost:
        """Counts parameters, multiply-adds, FLOPs and bytes of one call.

        The convention is that of XLA's analysis of the unoptimised program: a convolution multiplies where its window
        meets elements, not padding or holes; exp and the like are no FLOPs. Other than in XLA, the body of a scan
        counts as often as it runs; that of a `while` loop, whose turns are not known, counts once.

        Args:
          masks: a mask tree for the parameters. The counts are those of a program that skips every pruned weight, which
            a dense kernel does not: they are theoretical.
          plan: a `jaxprune.Plan`; the counts are those of the shrunk function.

        Returns:
          The counts, in total, of each parameter and of each operation that consumes one; prints as a table.

        Raises:
          ValueError: the masks or the plan do not fit the model, or both are given.
          TypeError: `plan` is no plan.

        Example:
          >>> import jax.numpy as jnp
          >>> import jaxprune as jp
          >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
          >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
          >>> model.cost().macs, model.cost(plan=jp.Plan({"a:1": [True, False, True]})).macs
          (12, 8)
          >>> model.cost(masks={"a": jnp.eye(2, 3, dtype=bool), "b": True}).macs
          8
        """
        return cost(self, masks, plan)

    @property
    def leaves(self) -> tuple[Any, ...]:
        """The abstract parameters in flattening order."""
        return self.layers.leaves

    def dims_of(self, leaf: int) -> list[Dim]:
        """The axes of a parameter, by its position."""
        return self.axes.of(self.program.graph.inputs[leaf])

    def sizes(self, keep: Mapping[str, Any], program: Program | None = None) -> Sizes:
        """What is left of every axis when some groups keep only some of their indices.

        Args:
          keep: bool[size] by group id; groups that are not named keep everything.
          program: the program that is to run, where it is not the traced one.
        """
        return Sizes(self.axes, {self.atoms[name]: mask for name, mask in keep.items()}, program)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short hash of the paths and shapes of the parameters and of the groups."""
        shapes = [(path, leaf.shape, str(leaf.dtype)) for path, leaf in zip(self.paths, self.leaves, strict=True)]
        groups = [(name, group.size) for name, group in self.groups.items()]
        return hashlib.sha256(repr((shapes, groups)).encode()).hexdigest()[:16]

    @functools.cached_property
    def matrix_axes(self) -> Mapping[str, trees.MatrixAxes]:
        """How dots and convolutions use each floating parameter that they read; this makes a model a `where`.

        A parameter that several read is described by the first of them.
        """
        found: dict[str, trees.MatrixAxes] = {}
        for site in self.sites:
            if site.kind == GATHER or not trees.is_floating(self.leaves[site.leaf]):
                continue
            window = site.contract[:-1] if site.kind == CONVOLUTION else ()
            contract = tuple(axis for axis in site.contract if axis not in window)
            found.setdefault(site.path, trees.MatrixAxes(contract, site.output, window))
        return found

    def __repr__(self) -> str:
        return f"Model({len(self.paths)} parameters, {len(self.sites)} sites, {len(self.groups)} groups)"


def trace(
    apply_fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    frozen_outputs: Where = None,
    state_outputs: Callable[[Any], PyTree] | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> Model:
    """Reads a model from one trace of `apply_fn(params, *args)`.

    Nothing is computed; `jax.ShapeDtypeStruct`s do for `params` and `args`. The model may come from any framework, or
    from none. Inputs keep their axes, and so do outputs, unless told otherwise.

    Args:
      apply_fn: a pure function of the parameters and the arguments.
      params: the parameters, and whatever else shall be cut along with them (batch statistics, moments, a cache): any
        pytree. Only floating leaves are ever cut.
      args: the arguments, at some batch size.
      frozen_outputs: which outputs keep all their axes: `None` (all of them), a regular expression over their paths, a
        list of these, a callable `(path, output) -> bool` or a tree (prefix) of bools. The single output of a function
        has the path `""`.
      state_outputs: takes the outputs and gives those parts of them that are the next value of a part of `params`, as a
        tree with the paths of `params` (`lambda out: {"batch_stats": out[1]["batch_stats"]}`): they are cut as that
        part is.
      rules: rules of primitives for this trace, by name, over the registered ones.

    Returns:
      The model.

    Raises:
      ValueError: `frozen_outputs` matches no output, or `state_outputs` gives a path that `params` has not, or another
        shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
      >>> params = {"first": jnp.ones((4, 16)), "second": jnp.ones((16, 3))}
      >>> model = trace(mlp, params, jnp.ones((2, 4)))
      >>> print(model.groups["first:1"])
      first:1: 16 indices, consumers
        first axis 1 (out)
        second axis 0 (in)
    """
    params, args = jax.tree.map(abstract, (params, args))
    layers = read_layers(apply_fn, params, *args)
    program, paths, leaves, outputs = layers.program, layers.paths, layers.leaves, layers.outputs
    axes = Axes(program, {**RULES, **(rules or {})})
    inputs = program.graph.inputs
    for value in inputs[len(paths) :]:
        axes.freeze(None, axes.of(value), "it is an axis of an argument")
    for leaf, value in zip(leaves, inputs, strict=False):
        if not trees.is_floating(leaf):
            axes.freeze(None, axes.of(value), "it is no floating array")
    axes.run(program.graph)
    open_outputs = _close_outputs(axes, paths, outputs, frozen_outputs, state_outputs)
    read = _read(program.graph)
    used = frozenset(leaf for leaf in range(len(paths)) if inputs[leaf] in read)
    free = [leaf for leaf in sorted(used) if trees.is_floating(leaves[leaf])]
    groups, found = find_groups(axes, paths, leaves, free, layers.roles, open_outputs)
    return Model(apply_fn, params, args, layers, axes, used, groups, found)


def _read(graph: Graph) -> set[int]:
    read = {operand for operand in graph.outputs if not isinstance(operand, Literal)}
    for node in graph.primitives():
        read.update(operand for operand in node.inputs if not isinstance(operand, Literal))
    return read


def _close_outputs(
    axes: Axes,
    paths: Sequence[str],
    outputs: PyTree,
    frozen: Where,
    state: Callable[[Any], PyTree] | None,
) -> list[Operand]:
    """Ties the outputs that are the next state to the parameters that they replace, and freezes the others.

    Returns:
      The outputs that are neither.
    """
    values = axes.program.graph.outputs
    numbered = jax.tree.unflatten(jax.tree.structure(outputs), range(len(values)))
    tied: dict[int, str] = {}
    for path, k in trees.leaves_with_paths(state(numbered) if state is not None else {}):
        if path not in paths:
            raise ValueError(
                f"state_outputs gives {path!r}, which is no path of params; they are {trees.list_paths(paths)}. It "
                "must give a tree with the paths of the part of params that it is the next value of."
            )
        own, next_value = axes.of(axes.program.graph.inputs[paths.index(path)]), axes.of(values[k])
        if [dim.size for dim in own] != [dim.size for dim in next_value]:
            raise ValueError(f"state_outputs: the next value of {path!r} has another shape than {path!r} itself.")
        for a, b in zip(own, next_value, strict=True):
            dims.unify(a, b, Reason(f"it is the next value of {path}"))
        tied[k] = path
    chosen = _frozen_outputs(frozen, outputs)
    open_outputs = []
    for k, (path, fixed) in enumerate(chosen):
        if k not in tied and not fixed:
            open_outputs.append(values[k])
        if k not in tied and fixed:
            for axis, dim in enumerate(axes.of(values[k])):
                dims.freeze(dim, Reason(f"it is axis {axis} of the output {path!r}, which frozen_outputs may let go"))
    return open_outputs


def _frozen_outputs(frozen: Where, outputs: PyTree) -> list[tuple[str, bool]]:
    named = trees.leaves_with_paths(outputs)
    flags = [True] * len(named) if frozen is None else trees.choose(frozen, outputs)
    patterns = [frozen] if isinstance(frozen, str) else frozen if isinstance(frozen, (list, tuple)) else []
    if not any(flags) and any(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(
            f"frozen_outputs={frozen!r} matches no output; their paths are "
            f"{trees.list_paths([path for path, _ in named])}. To freeze none of them give False."
        )
    return [(path, bool(flag)) for (path, _), flag in zip(named, flags, strict=True)]
