"""How long a call takes: two functions by turns in one process, so that noise meets both alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def medians(calls: Mapping[str, Callable[[], Any]], repetitions: int = 200) -> dict[str, float]:
    """The median time of each call in milliseconds, measured by turns after a warm-up.

    Args:
      calls: functions without arguments that return arrays.
      repetitions: measurements of each.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(5):
            jax.block_until_ready(call())
    for _ in range(repetitions):
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - begin)
    return {name: float(np.median(values)) * 1e3 for name, values in times.items()}
