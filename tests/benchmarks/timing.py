"""Interleaved timing: every repetition runs all candidates once, so that a noisy moment hits them alike."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def medians(candidates: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Median seconds of each candidate, warmed up once."""
    for run in candidates.values():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repetitions):
        for name, run in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}
