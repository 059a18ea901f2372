"""Making a model smaller: how important its indices are, which of them stay, the cut, and the proof.

`group_scores` rates the indices of every group; `select` turns scores and a `Budget` into a `Plan`; `plan_from_masks`
and `dead_units` find plans in zeros. `shrink` cuts any tree by a plan, `shrunk_function` gives the function that goes
with it, and `verify` compares it with the masked model.
"""

from jaxprune.shrinking import depth
from jaxprune.shrinking.apply import shrink, shrunk_function
from jaxprune.shrinking.channel_pruner import channel_gmp
from jaxprune.shrinking.early_bird import EarlyBird, early_bird
from jaxprune.shrinking.from_masks import dead_units, plan_from_masks
from jaxprune.shrinking.group_scores import geometric_median_scores, group_scores
from jaxprune.shrinking.penalties import group_lasso, removal_penalty
from jaxprune.shrinking.plan import Plan
from jaxprune.shrinking.select import Budget, select
from jaxprune.shrinking.verify import Verification, verify

__all__ = [
    "Budget",
    "EarlyBird",
    "Plan",
    "Verification",
    "channel_gmp",
    "dead_units",
    "depth",
    "early_bird",
    "geometric_median_scores",
    "group_lasso",
    "group_scores",
    "plan_from_masks",
    "removal_penalty",
    "select",
    "shrink",
    "shrunk_function",
    "verify",
]
