"""Plans, and lines of code to be named in errors, for the tests of the adapters."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

import jaxprune as jp


def random_plan(
    model: jp.Model, share: float = 0.4, seed: int = 0, where: Callable[[jp.Group], bool] = lambda group: True
) -> jp.Plan:
    """Removes a share of every group, or of some, at random."""
    draw, keep = np.random.default_rng(seed), {}
    for name, group in model.groups.items():
        mask = np.ones(group.size, bool)
        mask[draw.permutation(group.size)[: min(group.size - 1, round(share * group.size))]] = False
        if where(group):
            keep[name] = mask
    assert keep, "the model has no group to cut"
    return jp.Plan(keep)


def named(*words: str) -> Callable[[jp.Group], bool]:
    """Groups with a member whose path and axis end in one of these."""
    return lambda group: any(f"{member.path}:{member.axis}".endswith(words) for member in group.members)


def line_of(file: str, text: str) -> str:
    """`file:number` of the one line with this text."""
    (number,) = (k for k, line in enumerate(Path(file).read_text().splitlines(), 1) if line.strip() == text)
    return f"{file}:{number}"
