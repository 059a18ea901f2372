"""Calibration: statistics summed over batches of data."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from jaxprune.calibration.capture import Statistics, Weights, add, capture
from jaxprune.calibration.statistics import Statistic
from jaxprune.tracing.coverage import find_coverage
from jaxprune.tracing.layers import read_layers
from jaxprune.trees import PyTree, Where, resolve_where


def calibrate(
    apply_fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    stat: Statistic,
    *,
    where: Where = None,
    weights: Weights | None = None,
    init: Statistics | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Statistics:
    """Sums a statistic of the inputs of every layer over batches.

    One jitted step a batch; the sums are donated to it. Under data parallelism (batches sharded over devices) each step
    sums over the devices, and the result is whole on each of them.

    Args:
      apply_fn: a pure function of parameters and arguments.
      params: its parameters.
      batches: the arguments of each call: a tuple of them, or the only one.
      stat: as for `capture`.
      where: as for `capture`.
      weights: as for `capture`.
      init: statistics to go on from, such as those of an earlier part of the data.
      strict: raise where a parameter that `where` chooses (floating ones with two axes or more, by default) is not
        covered.
      progress: show a progress bar.

    Returns:
      The statistics.

    Raises:
      ValueError: there are no batches, or no rows with a weight; nothing is covered, or not everything under `strict`;
        `init` has statistics of other inputs, or of another kind.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3))}
      >>> batches = [jnp.ones((5, 2)), jnp.ones((5, 2))]
      >>> stats = jp.calibrate(lambda p, x: x @ p["a"], params, batches, jp.stats.column_norms)
      >>> stats["a"].tolist(), float(stats.count("a"))
      ([10.0, 10.0], 10.0)
    """
    tapped = capture(apply_fn, stat, where=where, weights=weights)
    first = jax.jit(lambda params, args: tapped(params, *args)[1])

    @functools.partial(jax.jit, donate_argnums=0)
    def step(total: Statistics, params: PyTree, args: tuple[Any, ...]) -> Statistics:
        return add(total, tapped(params, *args)[1])

    # The first step gives its argument away, and `init` is the caller's.
    total = None if init is None else jax.tree.map(lambda x: x.copy(), init)
    seen = 0
    for args in bar(map(as_arguments, batches), progress, "calibrate"):
        if strict and not seen:
            flags = jax.tree.leaves(resolve_where(where, params))
            find_coverage(read_layers(apply_fn, params, *args), flags, strict=True)
        seen += 1
        if total is None:
            total = first(params, args)
            continue
        if seen == 1:
            _check_same(total, jax.eval_shape(tapped, params, *args)[1])
        total = step(total, params, args)
    if total is None or not seen:
        raise ValueError("calibrate: there are no batches, so there is nothing to learn from.")
    empty = [name for name, count in jax.device_get(total.counts).items() if not (count > 0).any()]
    if empty:
        raise ValueError(f"calibrate: no rows with a weight reached {', '.join(empty)}; check `weights` and the data.")
    return total


def _check_same(init: Statistics, wanted: Statistics) -> None:
    """Raises where statistics to go on from are not such as those that will be added; sums would broadcast."""
    if wanted.inputs != init.inputs:
        raise ValueError(
            f"init has statistics of other inputs, of {', '.join(init.names)}, than this function with this "
            f"`stat` and `where`, of {', '.join(wanted.names)}."
        )
    for source, value in wanted.values.items():
        given, needed = (jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", x) for x in (init.values[source], value))
        if given != needed:
            raise ValueError(
                f"init has another statistic of the inputs of {source!r}, {given}, than `stat` takes, {needed}; go on "
                "from what the same `stat` gave for the same model."
            )


def as_arguments(batch: Any) -> tuple[Any, ...]:
    """The arguments of one call: a tuple as it is, anything else as the only one."""
    return batch if isinstance(batch, tuple) else (batch,)


def bar(items: Iterable[Any], show: bool, description: str) -> Iterator[Any]:
    """The items, with a progress bar."""
    if not show:
        yield from items
        return
    from rich.progress import track

    yield from track(items, description=description)


@contextlib.contextmanager
def counter(show: bool, total: int, description: str) -> Iterator[Callable[..., None]]:
    """A progress bar that is moved on by hand: by one step, or by so many."""
    if not show:
        yield lambda steps=1: None
        return
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task(description, total=total)
        yield lambda steps=1: progress.advance(task, steps)
