"""Joules: of a call, by turns with others and above idle, and of a run that cannot be repeated.

Where no sensor can be read the figure is "not measured", with the reason. Nothing is guessed from a nameplate.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.measure.figure import Figure, Kind
from jaxprune.measure.latency import Call, from_samples
from jaxprune.measure.meters import Meter, MeterUnavailable
from jaxprune.measure.nvml import NvmlMeter
from jaxprune.measure.rapl import RaplMeter

# Counters move every 1 ms (RAPL) to 100 ms (NVML): a shorter window is mostly their steps.
_GOOD_WINDOW_S = 10.0
# These read the same sensors as the other meters.
_ALONE = frozenset({"zeus", "codecarbon"})

_PENDING = Figure.absent("J", "the block has not ended")
_PENDING_S = Figure.absent("s", "the block has not ended")

# Read through the module, so that a test can put a machine of its own here.
_clock = time.perf_counter
_sleep = time.sleep


class Found(NamedTuple):
    """The meters of this machine.

    Attributes:
      meters: those that work, in order.
      missing: why the others do not, by name.
    """

    meters: tuple[Meter, ...]
    missing: dict[str, str]

    @property
    def reason(self) -> str:
        """What is missing, in one line."""
        return "; ".join(f"no {name}: {reason}" for name, reason in self.missing.items())


def find_meters() -> Found:
    """Looks for RAPL and then for NVML, the sensors that count joules.

    Returns:
      The meters that work, and why the others do not.

    Example:
      >>> found = find_meters()
      >>> len(found.meters) + len(found.missing)
      2
    """
    meters: list[Meter] = []
    missing = {}
    for name, make in (("RAPL", RaplMeter), ("NVML", NvmlMeter)):
        try:
            meters.append(make())
        except MeterUnavailable as reason:
            missing[name] = str(reason)
    return Found(tuple(meters), missing)


def energy(
    calls: Mapping[str, Call],
    *,
    meters: Sequence[Meter] | None = None,
    seconds: float = 10.0,
    repetitions: int = 5,
    idle: bool = True,
) -> dict[str, Figure]:
    r"""The joules of one run of each call, over all that is metered, above what the machine takes when idle.

    In every repetition the machine rests for `seconds`, and then each call is run for as long, over and over. With
    $E_r$ joules and $n_r$ runs in $t_r$ seconds, and $P_r$ watts at rest in the same repetition, the figure is the
    median over $r$ of $(E_r - P_r t_r) / n_r$. It takes `repetitions * seconds * (len(calls) + 1)` seconds.

    Args:
      calls: functions without arguments that return any pytree; its arrays are waited for.
      meters: what to read; those of `find_meters` unless given. They must not count the same device twice.
      seconds: of each window; below 10 the steps of the counters show.
      repetitions: windows of each call.
      idle: subtract the energy at rest; else the figure is gross.

    Returns:
      Joules by name, with half of the interquartile range as spread, over the same domains for every call: what stood
      still for one of them is left out for all. The note gives the idle power, and what is counted. Without a sensor,
      "not measured" and why.

    Raises:
      ValueError: there is no call, no repetition or no window, or meters that count the same.

    Example:
      >>> figure = energy({"nothing": lambda: None}, meters=[])["nothing"]
      >>> print(figure)
      not measured (no meter was given)
    """
    readings = _read(calls, meters, seconds, repetitions, idle)
    if isinstance(readings, str):
        return {name: Figure.absent("J", readings) for name in calls}
    return {name: _total(readings, name) for name in calls}


def energy_by_domain(
    calls: Mapping[str, Call],
    *,
    meters: Sequence[Meter] | None = None,
    seconds: float = 10.0,
    repetitions: int = 5,
    idle: bool = True,
) -> dict[str, dict[str, Figure]]:
    """As `energy`, with a figure for each processor package, its DRAM, and each GPU.

    Args:
      calls: as for `energy`.
      meters: as for `energy`.
      seconds: as for `energy`.
      repetitions: as for `energy`.
      idle: as for `energy`.

    Returns:
      Joules by name and by domain, such as "rapl:package-0", "rapl:package-0/dram" and "nvml:0"; "total" is their
      sum, and the only one without a sensor.

    Raises:
      ValueError: as for `energy`.

    Example:
      >>> list(energy_by_domain({"nothing": lambda: None}, meters=[])["nothing"])
      ['total']
    """
    readings = _read(calls, meters, seconds, repetitions, idle)
    if isinstance(readings, str):
        return {name: {"total": Figure.absent("J", readings)} for name in calls}
    return {
        name: {
            "total": _total(readings, name),
            **{domain: _figure(readings, name, [domain]) for domain in readings.domains},
        }
        for name in calls
    }


@dataclasses.dataclass
class EnergyRecord:
    """What `record_energy` has seen; filled when its block ends.

    Attributes:
      total: joules over all domains, idle included.
      domains: joules by domain.
      seconds: how long the block took.

    Example:
      >>> EnergyRecord().total.value is None
      True
    """

    total: Figure = _PENDING
    domains: dict[str, Figure] = dataclasses.field(default_factory=dict)
    seconds: Figure = _PENDING_S


@contextlib.contextmanager
def record_energy(meters: Sequence[Meter] | None = None) -> Iterator[EnergyRecord]:
    """Meters a block that runs once, such as a training: for the price of pruning, and the break-even.

    The figures are gross: the power at rest is part of them. Wait for the arrays of the block inside it.

    Args:
      meters: as for `energy`.

    Yields:
      The record, filled at the end.

    Raises:
      ValueError: meters that count the same.

    Example:
      >>> with record_energy(meters=[]) as record:
      ...     pass
      >>> print(record.total)
      not measured (no meter was given)
    """
    chosen, reason = _chosen(meters)
    record = EnergyRecord()
    began = _clock()
    windows: list[Any] = [meter.start() for meter in chosen]
    try:
        yield record
    finally:
        record.seconds = Figure(_clock() - began, "s", "measured", "wall clock")
        joules = _stop(chosen, windows)
    note = "; ".join(["gross, idle included", *_covered(chosen, reason)])
    kind = _kind(chosen)
    record.domains = {domain: Figure(value, "J", kind, domain, note=note) for domain, value in joules.items()}
    record.total = Figure.absent("J", reason or "the meters count nothing")
    if joules:
        record.total = Figure(sum(joules.values()), "J", kind, " + ".join(joules), note=note)


@dataclasses.dataclass(frozen=True)
class _Readings:
    """Joules a run by call and domain, one for each repetition; watts at rest by domain; domains that stood still."""

    joules: Mapping[str, Mapping[str, list[float]]]
    watts: Mapping[str, list[float]]
    stuck: frozenset[tuple[str, str]]
    kind: Kind
    seconds: float
    notes: list[str]

    @property
    def domains(self) -> list[str]:
        return list(next(iter(self.joules.values())))


def _read(
    calls: Mapping[str, Call], meters: Sequence[Meter] | None, seconds: float, repetitions: int, idle: bool
) -> _Readings | str:
    """The readings, or why there are none."""
    if not calls:
        raise ValueError("calls is empty; give at least one function, as in {'dense': lambda: apply(params, x)}.")
    if repetitions < 1 or seconds <= 0:
        raise ValueError(f"seconds={seconds}, repetitions={repetitions}: both must be above 0.")
    chosen, reason = _chosen(meters)
    if not chosen:
        return reason
    for call in calls.values():
        jax.block_until_ready(call())
    joules: dict[str, dict[str, list[float]]] = {name: {} for name in calls}
    watts: dict[str, list[float]] = {}
    stuck = set()
    for _ in range(repetitions):
        at_rest: dict[str, float] = {}
        if idle:
            seen, elapsed, _ = _window(chosen, None, seconds)
            at_rest = {domain: value / elapsed for domain, value in seen.items()}
            for domain, value in at_rest.items():
                watts.setdefault(domain, []).append(value)
        for name, call in calls.items():
            seen, elapsed, runs = _window(chosen, call, seconds)
            for domain, value in seen.items():
                if not value:
                    stuck.add((name, domain))
                net = (value - at_rest.get(domain, 0.0) * elapsed) / runs
                joules[name].setdefault(domain, []).append(net)
    return _Readings(joules, watts, frozenset(stuck), _kind(chosen), seconds, _covered(chosen, reason))


def _window(meters: Sequence[Meter], call: Call | None, seconds: float) -> tuple[dict[str, float], float, int]:
    """Joules by domain, the seconds that passed, and how often the call was run; without a call the machine rests."""
    windows: list[Any] = [meter.start() for meter in meters]
    began = _clock()
    runs = 0
    try:
        if call is None:
            _sleep(seconds)
        else:
            while not runs or _clock() - began < seconds:
                jax.block_until_ready(call())
                runs += 1
    finally:
        elapsed = _clock() - began
        seen = _stop(meters, windows)
    return seen, elapsed, runs


def _stop(meters: Sequence[Meter], windows: Sequence[Any]) -> dict[str, float]:
    """Joules by domain of all meters."""
    joules: dict[str, float] = {}
    for meter, window in zip(meters, windows, strict=True):
        joules |= meter.stop(window)
    return joules


def _total(readings: _Readings, name: str) -> Figure:
    """Over the domains that moved for every call: totals of different domains could not be compared."""
    left_out = [domain for domain in readings.domains if any(stuck == domain for _, stuck in readings.stuck)]
    counted = [domain for domain in readings.domains if domain not in left_out]
    if not counted:
        return _stood_still(readings, left_out)
    figure = _figure(readings, name, counted)
    if not left_out:
        return figure
    return dataclasses.replace(figure, note=f"{figure.note}; without {', '.join(left_out)}, which stood still")


def _stood_still(readings: _Readings, domains: Sequence[str]) -> Figure:
    where = ", ".join(domains)
    return Figure.absent("J", f"{where} stood still in a window of {readings.seconds:g} s; give a longer one")


def _figure(readings: _Readings, name: str, domains: list[str]) -> Figure:
    stuck = [domain for domain in domains if (name, domain) in readings.stuck]
    if stuck:
        return _stood_still(readings, stuck)
    samples = np.sum([readings.joules[name][domain] for domain in domains], axis=0).tolist()
    notes = [f"windows of {readings.seconds:g} s"]
    if readings.seconds < _GOOD_WINDOW_S:
        notes[0] += f", shorter than the {_GOOD_WINDOW_S:g} s that counters need"
    if readings.watts:
        idle = float(np.median(np.sum([readings.watts[domain] for domain in domains], axis=0)))
        notes.append(f"idle {Figure(idle, 'W', readings.kind, '').quantity()} subtracted")
    else:
        notes.append("gross, idle included")
    figure = from_samples(samples, "J", " + ".join(domains), "; ".join([*notes, *readings.notes]))
    return dataclasses.replace(figure, kind=readings.kind)


def _chosen(meters: Sequence[Meter] | None) -> tuple[Sequence[Meter], str]:
    """The meters, and why there are no others."""
    if meters is None:
        found = find_meters()
        return found.meters, found.reason
    names = [meter.name for meter in meters]
    if len(set(names)) < len(names) or (len(names) > 1 and _ALONE.intersection(names)):
        raise ValueError(
            f"meters={names} count the same devices more than once. Give zeus or codecarbon alone, or others once each."
        )
    return meters, "" if meters else "no meter was given"


def _covered(meters: Sequence[Meter], reason: str) -> list[str]:
    return [*(f"{meter.name}: {meter.includes}" for meter in meters), *([reason] if reason else [])]


def _kind(meters: Sequence[Meter]) -> Kind:
    return "modelled" if any(meter.kind == "modelled" for meter in meters) else "measured"
