"""The form of a rule, and the registry."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxprune.tracing.axes import Axes, Sizes
from jaxprune.tracing.graph import Node


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one primitive treats axes.

    Attributes:
      axes: called with the node and the `Axes`; sets the axes of every output, unifies or freezes those of the inputs.
      resize: called with the node and the `Sizes`; gives the static parameters that differ in the smaller program.
        None where no parameter names a size.
      generates: whether the outputs are made at full size and then cut: what is drawn or counted out (`iota`, random
        bits) must not change because fewer positions are asked for.
      empty: whether `axes` can deal with arrays without elements; otherwise such a node is frozen.
    """

    axes: Callable[[Node, Axes], None]
    resize: Callable[[Node, Sizes], dict[str, Any]] | None = None
    generates: bool = False
    empty: bool = False


RULES: dict[str, Rule] = {}


def register_rule(primitive: str, rule: Rule) -> None:
    """Says how a primitive treats axes, for every later trace.

    A primitive without a rule freezes all axes that it touches. Rules for one trace only go to `jp.trace(rules=...)`.

    Args:
      primitive: its name, as `jax.make_jaxpr` prints it; a rule that exists is replaced.
      rule: the rule.

    Raises:
      TypeError: `rule` is no `Rule`.

    Example:
      A custom kernel that keeps the shape of its one operand:

      >>> from jaxprune.tracing import Rule, register_rule
      >>> def same_axes(node, axes):
      ...     axes.set(node.outputs[0], axes.of(node.inputs[0]))
      >>> register_rule("my_kernel", Rule(same_axes))
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"the rule of {primitive!r} is a {type(rule).__name__}; give a jaxprune.tracing.Rule.")
    RULES[primitive] = rule


def opaque(text: str) -> Rule:
    """The rule that freezes every axis of a node, and says why.

    Args:
      text: the reason, for `Model.explain`.

    Example:
      >>> register_rule("my_solver", opaque("a solver mixes all of it"))
    """
    return Rule(lambda node, axes: axes.freeze_all(node, text))
