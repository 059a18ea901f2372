"""Making a model smaller: how important its indices are, which of them stay, the cut, and the proof.

`group_scores` rates the indices of every group; `select` turns scores and a `Budget` into a `Plan`; `plan_from_masks`
and `dead_units` find plans in zeros. `shrink` cuts any tree by a plan, `shrunk_function` gives the function that goes
with it, and `verify` compares it with the masked model.
"""

from jaxprune.shrinking.apply import shrink, shrunk_function
from jaxprune.shrinking.from_masks import dead_units, plan_from_masks
from jaxprune.shrinking.group_scores import geometric_median_scores, group_scores
from jaxprune.shrinking.plan import Plan
from jaxprune.shrinking.select import Budget, select
from jaxprune.shrinking.verify import Verification, verify

__all__ = [
    "Budget",
    "Plan",
    "Verification",
    "dead_units",
    "geometric_median_scores",
    "group_scores",
    "plan_from_masks",
    "select",
    "shrink",
    "shrunk_function",
    "verify",
]
