"""jaxprune: pruning for JAX.

Masks from scores (`compute_masks`), training under masks in any Optax chain (`sparsify`, `keep_masks`), and reading
them back (`get_masks`, `sparse_params`).
"""

from jaxprune import allocation, pruners, schedules, scores, storage, tracing
from jaxprune.compute import Rule, compute_masks
from jaxprune.lottery import Ticket, lottery_ticket
from jaxprune.masks import apply_masks, combine, from_zeros, full_masks, pack, sparsity, unpack
from jaxprune.pruners import Pruner
from jaxprune.shrinking import Plan, Verification, shrink, shrunk_function, verify
from jaxprune.states import check_masks, get_masks, rewind, second_moment, sparse_params
from jaxprune.structures import NM, Block, Channel, Structure, Unstructured
from jaxprune.summary import Summary, summary
from jaxprune.tracing import Group, Member, Model, Site, trace
from jaxprune.transforms import keep_masks, sparsify

__all__ = [
    "NM",
    "Block",
    "Channel",
    "Group",
    "Member",
    "Model",
    "Plan",
    "Pruner",
    "Rule",
    "Site",
    "Structure",
    "Summary",
    "Ticket",
    "Unstructured",
    "Verification",
    "allocation",
    "apply_masks",
    "check_masks",
    "combine",
    "compute_masks",
    "from_zeros",
    "full_masks",
    "get_masks",
    "keep_masks",
    "lottery_ticket",
    "pack",
    "pruners",
    "rewind",
    "schedules",
    "scores",
    "second_moment",
    "shrink",
    "shrunk_function",
    "sparse_params",
    "sparsify",
    "sparsity",
    "storage",
    "summary",
    "trace",
    "tracing",
    "unpack",
    "verify",
]

__version__ = "0.1.0"
