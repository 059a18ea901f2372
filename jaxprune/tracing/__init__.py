"""Reading a model from one trace."""

from jaxprune.tracing.cost import Cost, PathCost
from jaxprune.tracing.groups import Group, Member
from jaxprune.tracing.model import Model, trace
from jaxprune.tracing.rules import Rule, opaque, register_rule
from jaxprune.tracing.sites import Site

__all__ = ["Cost", "Group", "Member", "Model", "PathCost", "Rule", "Site", "opaque", "register_rule", "trace"]
