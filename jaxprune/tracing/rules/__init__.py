"""What each primitive says about axes, and how it runs on smaller ones.

A `Rule` has two halves. `axes(node, axes)` states the equations between the axes of inputs and outputs, or freezes what
it cannot express. `resize(node, sizes)` gives the static parameters that name a size, for the smaller program. Each
file holds the rules of one kind of primitive, and `register_rule` adds those of a user's own.
"""

from jaxprune.tracing.rules import contractions, control_flow, elementwise, generators, indexing, ordering, reductions
from jaxprune.tracing.rules import shapes as _shapes
from jaxprune.tracing.rules._rule import RULES, Rule, opaque, register_rule

__all__ = ["RULES", "Rule", "opaque", "register_rule"]

for _topic in (elementwise, _shapes, reductions, contractions, indexing, ordering, generators, control_flow):
    RULES.update(_topic.RULES)
