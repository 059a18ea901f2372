"""Interleaved timing: every repetition runs all candidates once, so that a noisy moment hits them alike."""

from collections.abc import Callable, Mapping
from typing import Any

import jaxprune as jp


def medians(candidates: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Median seconds of each candidate, warmed up once."""
    figures = jp.measure.latency(candidates, repetitions=repetitions, warmup=1)
    return {name: figure.value or 0.0 for name, figure in figures.items()}
