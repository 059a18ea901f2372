"""Wall-clock time: several calls by turns in one process, so that a noisy moment meets them alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.measure.figure import Figure

Call = Callable[[], Any]

# Read through the module, so that a test can put a clock of its own here.
_clock = time.perf_counter


def latency(calls: Mapping[str, Call], *, repetitions: int = 51, warmup: int = 3) -> dict[str, Figure]:
    """The median time of each call, measured by turns after a warm-up, which also compiles.

    Every repetition runs each call once, in an order that is reversed every other time, and waits for its arrays.

    Args:
      calls: functions without arguments that return any pytree; its arrays are waited for.
      repetitions: measurements of each.
      warmup: calls of each before the clock starts.

    Returns:
      Seconds by name: the median, and as spread half of the interquartile range.

    Raises:
      ValueError: there is no call, no repetition or no warm-up.

    Example:
      >>> import jax.numpy as jnp
      >>> square = jax.jit(jnp.square)
      >>> latency({"square": lambda: square(jnp.ones(8))}, repetitions=3)["square"].kind
      'measured'
    """
    source = "wall clock, interleaved medians"
    times = _times(calls, repetitions, warmup)
    return {name: from_samples(values, "s", source) for name, values in times.items()}


def ratio(numerator: Call, denominator: Call, *, repetitions: int = 51, warmup: int = 3) -> Figure:
    """How many times as long one call takes as another; below 1 means that the first is faster.

    The two are run in pairs, one right after the other. The ratio is taken of each pair, and then the median: what
    slows both for a while cancels.

    Args:
      numerator: the call in question, such as that of the pruned model.
      denominator: the baseline, such as that of the dense model.
      repetitions: pairs.
      warmup: calls of each before the clock starts.

    Returns:
      The median ratio, and as spread half of the interquartile range of the ratios.

    Raises:
      ValueError: there is no repetition or no warm-up.

    Example:
      >>> import jax.numpy as jnp
      >>> square = jax.jit(jnp.square)
      >>> ratio(lambda: square(jnp.ones(8)), lambda: square(jnp.ones(8)), repetitions=3).unit
      ''
    """
    times = _times({"numerator": numerator, "denominator": denominator}, repetitions, warmup)
    ratios = [a / b for a, b in zip(times["numerator"], times["denominator"], strict=True)]
    return from_samples(ratios, "", "wall clock, median of paired ratios")


def from_samples(samples: Sequence[float], unit: str, source: str, note: str = "") -> Figure:
    """The figure of repeated measurements: their median, and half of their interquartile range.

    Args:
      samples: the measurements, in `unit`.
      unit: as in `Figure`.
      source: the instrument.
      note: as in `Figure`.

    Returns:
      A measured figure. One sample has no spread.

    Raises:
      ValueError: there is no sample.

    Example:
      >>> print(from_samples([1.0, 2.0, 3.0], "s", "stopwatch"))
      2.00 s ± 0.50 (measured)
    """
    if not samples:
        raise ValueError("no samples: a figure needs at least one measurement.")
    low, middle, high = np.percentile(samples, [25, 50, 75])
    spread = float(high - low) / 2 if len(samples) > 1 else None
    return Figure(float(middle), unit, "measured", source, spread, len(samples), note)


def _times(calls: Mapping[str, Call], repetitions: int, warmup: int) -> dict[str, list[float]]:
    if not calls:
        raise ValueError("calls is empty; give at least one function, as in {'dense': lambda: apply(params, x)}.")
    for name, value in (("repetitions", repetitions), ("warmup", warmup)):
        if value < 1:
            # Without a warm-up the first time would be that of the compiler.
            raise ValueError(f"{name}={value}: at least 1 is needed.")
    for call in calls.values():
        for _ in range(warmup):
            jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls.items())
    for _ in range(repetitions):
        for name, call in order:
            begin = _clock()
            jax.block_until_ready(call())
            times[name].append(_clock() - begin)
        order.reverse()
    return times
