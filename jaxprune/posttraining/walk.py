"""A walk through a model: versions of it, run side by side from one place where something is to be done to the next."""

import abc
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.calibration.accumulate import as_arguments
from jaxprune.calibration.statistics import Statistic
from jaxprune.posttraining.stages import Data, Frame, Stages
from jaxprune.posttraining.units import Loop
from jaxprune.tracing.graph import Literal
from jaxprune.tracing.layers import Layers
from jaxprune.tracing.matrices import Matrix

Versions = list[list[Data]]  # the values of the data, of each batch of each version


def read_batches(batches: Iterable[Any], caller: str) -> list[tuple[Any, ...]]:
    """The arguments of each call.

    Raises:
      ValueError: there are none, or they are of several shapes.
    """
    found = list(map(as_arguments, batches))
    if not found:
        raise ValueError(f"{caller}: there are no batches, so there is nothing to learn from.")
    shapes = {str(jax.tree.map(jnp.shape, batch)) for batch in found}
    if len(shapes) > 1:
        raise ValueError(f"the batches have several shapes, {sorted(shapes)[:3]}; give batches of one shape.")
    return found


class Walk(abc.ABC):
    """Runs versions of a model on the same batches. What is done on the way is up to `process`.

    Args:
      layers: the model.
      stat: the statistic that is taken at inputs.
      versions: the parameters of each version; those of the first change on the way.
      offload: hold values in the memory of the host between stages.
    """

    def __init__(self, layers: Layers, stat: Statistic, versions: Sequence[list[Any]], offload: bool = False):
        self.layers = layers
        self.stages = Stages(layers, stat)
        self.versions = versions
        self.offload = offload
        self.advance: Callable[..., None] = lambda steps=1: None

    @property
    def leaves(self) -> list[Any]:
        """The parameters of the first version."""
        return self.versions[0]

    def start(self, matrices: Sequence[Matrix], batches: Sequence[tuple[Any, ...]]) -> None:
        """Processes the whole program."""
        inputs = self.layers.program.graph.inputs[len(self.layers.paths) :]
        values = [dict(zip(inputs, jax.tree.leaves(batch), strict=True)) for batch in batches]
        frame = Frame(self.layers, self.layers.program.graph)
        self.process(frame, matrices, (), [list(values) for _ in self.versions], outputs=False)

    @abc.abstractmethod
    def process(
        self, frame: Frame, matrices: Sequence[Matrix], index: tuple[int, ...], values: Versions, outputs: bool
    ) -> Versions:
        """Walks through a frame.

        Args:
          frame: the graph.
          matrices: those to work on.
          index: the step of each loop around it.
          values: the values of its inputs.
          outputs: whether the values of its outputs are asked for.

        Returns:
          The values of the outputs where they are asked for.
        """

    def run(
        self,
        version: int,
        frame: Frame,
        start: int,
        stop: int,
        keep: set[int],
        index: tuple[int, ...],
        data: list[Data],
    ) -> list[Data]:
        """Runs all batches of one version from one position to another."""
        if start == stop:
            return data
        leaves = self.versions[version]
        found = (self.stages.run(frame, start, stop, keep, leaves, index, values) for values in data)
        return [jax.device_get(values) if self.offload else values for values in found]

    def forward(
        self, frame: Frame, start: int, stop: int, keep: set[int], index: tuple[int, ...], values: Versions
    ) -> Versions:
        """Runs all batches of every version from one position to another."""
        return [self.run(k, frame, start, stop, keep, index, data) for k, data in enumerate(values)]

    def loop(self, frame: Frame, loop: Loop, index: tuple[int, ...], values: Versions, later: set[int]) -> Versions:
        """Runs a scan over stacked layers step by step, each of which is processed."""
        (body,), params = loop.node.subgraphs, loop.node.params
        inner = Frame(frame.layers, body, frame, loop.node)
        order = range(params["length"])[::-1] if params["reverse"] else range(params["length"])
        fixed = [functools.partial(self.stages.fixed, leaves=leaves) for leaves in self.versions]
        fronts = [[Front(inner, x, own, index) for x in data] for own, data in zip(fixed, values, strict=True)]
        for k in order:
            given = [[front.inputs(k) for front in own] for own in fronts]
            last = k == order[-1] and not later & set(loop.node.outputs)
            results = self.process(inner, loop.matrices, (*index, k), given, outputs=not last)
            for own, found in zip(fronts, results, strict=True) if not last else ():
                for front, x in zip(own, found, strict=True):
                    front.step(k, x)
        return [
            [front.outputs(x, later) for front, x in zip(own, data, strict=True)]
            for own, data in zip(fronts, values, strict=True)
        ]


class Front:
    """How far a scan has come on one batch: what it carries, and what it has put out.

    Args:
      frame: the body.
      values: the values of the data around the loop.
      fixed: gives a value that does not depend on the data, for a frame, the value and the steps of its loops.
      index: the step of each loop around the scan.
    """

    def __init__(self, frame: Frame, values: Data, fixed: Any, index: tuple[int, ...]):
        assert frame.loop is not None
        self.frame, self.node, self.index, self.fixed = frame, frame.loop, index, fixed
        params = self.node.params
        self.first, self.last = params["num_consts"], params["num_consts"] + params["num_carry"]
        self.length = params["length"]
        self.state: Data = {}
        self.each: Data = {}
        self.stacked: dict[int, dict[int, Any]] = {}
        for k, (outer, inner) in enumerate(zip(self.node.inputs, frame.graph.inputs, strict=True)):
            if frame.is_data(inner):
                into = self.state if k < self.last else self.each
                into[inner] = self._value(frame.outer, outer, values, index)

    def _value(self, frame: Any, operand: Any, values: Data, index: tuple[int, ...]) -> Any:
        if not isinstance(operand, Literal) and frame.is_data(operand):
            return values[operand]
        return self.fixed(frame, operand, index=index)

    def inputs(self, k: int) -> Data:
        """The values of the data that step `k` starts from."""
        return {**self.state, **{inner: array[k] for inner, array in self.each.items()}}

    def step(self, k: int, values: Data) -> None:
        """Takes the outputs of step `k`."""
        after = dict(self.state)
        for number, output in enumerate(self.frame.graph.outputs):
            if number < self.last - self.first:
                inner = self.frame.graph.inputs[self.first + number]
                if inner in after:
                    after[inner] = self._value(self.frame, output, values, (*self.index, k))
            elif not isinstance(output, Literal) and self.frame.is_data(output):
                self.stacked.setdefault(number, {})[k] = values[output]
        self.state = after

    def outputs(self, values: Data, later: set[int]) -> Data:
        """The values that are needed after the loop."""
        result = {number: value for number, value in values.items() if number in later}
        for k, output in enumerate(self.node.outputs):
            if output not in later:
                continue
            if k < self.last - self.first:
                result[output] = self.state[self.frame.graph.inputs[self.first + k]]
            else:
                result[output] = jnp.stack([self.stacked[k][step] for step in range(self.length)])
        return result
