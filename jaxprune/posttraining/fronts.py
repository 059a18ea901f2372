"""Fronts: how far a scan over stacked layers has come, when it is run step by step from outside."""

from typing import Any

import jax.numpy as jnp

from jaxprune.posttraining.stages import Data, Frame
from jaxprune.tracing.graph import Literal


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
