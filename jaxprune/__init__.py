"""jaxprune: pruning for JAX.

Masks from scores (`compute_masks`), training under masks in any Optax chain (`sparsify`, `keep_masks`), and reading
them back (`get_masks`, `sparse_params`).
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from jaxprune import allocation, posttraining, pruners, schedules, scores, storage, tracing
from jaxprune.calibration import Statistics, calibrate, capture
from jaxprune.calibration import statistics as stats
from jaxprune.compute import Rule, compute_masks
from jaxprune.lottery import Ticket, lottery_ticket
from jaxprune.masks import apply_masks, combine, from_zeros, full_masks, pack, sparsity, unpack
from jaxprune.posttraining.one_shot import prune_one_shot
from jaxprune.posttraining.result import LayerReport, Pruned
from jaxprune.posttraining.sequential import prune_sequential
from jaxprune.pruners import Pruner
from jaxprune.shrinking import (
    Budget,
    EarlyBird,
    Plan,
    Verification,
    channel_gmp,
    dead_units,
    depth,
    early_bird,
    geometric_median_scores,
    group_lasso,
    group_scores,
    plan_from_masks,
    removal_penalty,
    select,
    shrink,
    shrunk_function,
    verify,
)
from jaxprune.states import check_masks, get_masks, rewind, second_moment, sparse_params
from jaxprune.structures import NM, Block, Channel, Structure, Unstructured
from jaxprune.summary import Summary, summary
from jaxprune.tracing import Cost, Group, Member, Model, PathCost, Site, trace
from jaxprune.transforms import keep_masks, sparsify

if _TYPE_CHECKING:
    from jaxprune import measure, pipeline, report
    from jaxprune.pipeline import Comparison, Target, compare, sensitivity
    from jaxprune.report import Report, Trial

# The rooms that measure and report are imported when they are first used, so that `import jaxprune` stays light.
_LATER = {
    **dict.fromkeys(("measure", "pipeline", "report"), "jaxprune"),
    **dict.fromkeys(("Comparison", "Target", "compare", "sensitivity"), "jaxprune.pipeline"),
    **dict.fromkeys(("Report", "Trial"), "jaxprune.report"),
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'jaxprune' has no attribute {name!r}")
    room = _LATER[name]
    found = (
        _importlib.import_module(f"jaxprune.{name}")
        if room == "jaxprune"
        else getattr(_importlib.import_module(room), name)
    )
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "NM",
    "Block",
    "Budget",
    "Channel",
    "Comparison",
    "Cost",
    "EarlyBird",
    "Group",
    "LayerReport",
    "Member",
    "Model",
    "PathCost",
    "Plan",
    "Pruned",
    "Pruner",
    "Report",
    "Rule",
    "Site",
    "Statistics",
    "Structure",
    "Summary",
    "Target",
    "Ticket",
    "Trial",
    "Unstructured",
    "Verification",
    "allocation",
    "apply_masks",
    "calibrate",
    "capture",
    "channel_gmp",
    "check_masks",
    "combine",
    "compare",
    "compute_masks",
    "dead_units",
    "depth",
    "early_bird",
    "from_zeros",
    "full_masks",
    "geometric_median_scores",
    "get_masks",
    "group_lasso",
    "group_scores",
    "keep_masks",
    "lottery_ticket",
    "measure",
    "pack",
    "pipeline",
    "plan_from_masks",
    "posttraining",
    "prune_one_shot",
    "prune_sequential",
    "pruners",
    "removal_penalty",
    "report",
    "rewind",
    "schedules",
    "scores",
    "second_moment",
    "select",
    "sensitivity",
    "shrink",
    "shrunk_function",
    "sparse_params",
    "sparsify",
    "sparsity",
    "stats",
    "storage",
    "summary",
    "trace",
    "tracing",
    "unpack",
    "verify",
]

__version__ = "0.1.0"
