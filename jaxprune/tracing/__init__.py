"""Reading a model from one trace."""

from jaxprune.tracing.groups import Group, Member
from jaxprune.tracing.model import Model, trace
from jaxprune.tracing.rules import Rule, opaque, register_rule
from jaxprune.tracing.sites import Site

__all__ = ["Group", "Member", "Model", "Rule", "Site", "opaque", "register_rule", "trace"]
