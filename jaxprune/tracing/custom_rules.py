"""`custom_jvp` and `custom_vjp` when the shapes inside them have changed."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxprune.tracing.graph import Node


def call(evaluator: Any, node: Node, body: Callable[..., list[Any]], inputs: Sequence[Any]) -> list[Any]:
    """Runs the body; its own derivative stands in for the custom one."""
    del evaluator, node
    return body(*inputs)
