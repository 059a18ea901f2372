"""The methods that `--method` names: each one is an ordinary Optax optimiser.

That is all there is to pruning with jaxprune: `jp.sparsify(inner, pruner)` in place of `inner`. The
training loop does not know which method runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

import jaxprune as jp

PyTree = Any
Settings = jp.pipeline.Settings

# Those of `jp.pipeline` that train; its one-shot methods start from a trained model.
METHODS: tuple[str, ...] = (
    "random",
    "snip",
    "magnitude",
    "gmp",
    "set",
    "rigl",
    "granet",
    "ste",
    "sr_ste",
    "acdc",
    "top_kast",
    "movement",
)
NAMES: tuple[str, ...] = ("dense", *METHODS)
NEEDS_GRADIENTS = frozenset({"snip"})


def make_optimizer(
    method: str,
    inner: optax.GradientTransformation,
    sparsity: float | None,
    settings: Settings,
    key: jax.Array,
    gradients: PyTree = None,
) -> optax.GradientTransformation:
    """Wraps an optimiser in a pruner.

    Args:
      method: one of `NAMES`; `dense` returns `inner` itself.
      inner: any Optax optimiser.
      sparsity: target fraction of zeros over the parameters of `settings.where`; `None` where the
        structure fixes it.
      settings: what the methods of a comparison share.
      key: for random masks and random growth; it lives in the optimiser state from then on.
      gradients: those of one batch at the start, for the methods in `NEEDS_GRADIENTS`.

    Returns:
      An Optax gradient transformation.
    """
    if method == "dense":
        return inner
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; allowed: {', '.join(NAMES)}")
    own = dataclasses.replace(settings, sparsity=sparsity, grads=gradients)
    pruner = jp.pipeline.METHODS[method](own)
    assert isinstance(pruner, jp.Pruner)  # what `METHODS` above says
    return jp.sparsify(inner, pruner, key=key)


def parse_structure(text: str) -> Any:
    """Reads `unstructured`, `nm:2:4`, `block:4x4` or `channel`.

    Raises:
      ValueError: for anything else.
    """
    if text == "unstructured":
        return jp.Unstructured()
    if text == "channel":
        return jp.Channel(axis=-1)
    if match := re.fullmatch(r"nm:(\d+):(\d+)", text):
        return jp.NM(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"block:(\d+)x(\d+)", text):
        return jp.Block((int(match[1]), int(match[2])))
    raise ValueError(
        f"unknown structure {text!r}; allowed: unstructured, nm:N:M (nm:2:4), block:RxC (block:4x4), channel"
    )


def fixed_sparsity(structure: Any) -> float | None:
    """The sparsity that a structure fixes (N:M), or `None`."""
    return 1 - structure.n / structure.m if isinstance(structure, jp.NM) else None


def allocations() -> Mapping[str, Any]:
    """The allocations that `--allocation` names."""
    return {
        "uniform": jp.allocation.uniform,
        "erk": jp.allocation.erk,
        "global": jp.allocation.global_,
        "lamp": jp.allocation.lamp,
    }
