"""How long a call takes, in milliseconds: functions by turns in one process, so that noise meets all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jaxprune as jp


def medians(calls: Mapping[str, Callable[[], Any]], repetitions: int = 200) -> dict[str, float]:
    """The median time of each call in milliseconds, measured by turns after a warm-up.

    Args:
      calls: functions without arguments that return arrays.
      repetitions: measurements of each.
    """
    figures = jp.measure.latency(calls, repetitions=repetitions, warmup=5)
    return {name: 1e3 * (figure.value or 0.0) for name, figure in figures.items()}
