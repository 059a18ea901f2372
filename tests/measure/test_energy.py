"""Energy of calls on a machine of the test's own, whose clock and power are known exactly."""

import sys

import jax
import pytest

from jaxprune.measure import MeterUnavailable, energy, energy_by_domain, find_meters, record_energy


class Machine:
    """A machine that draws `idle` watts at rest, and more while a call runs; two domains, on a clock of its own."""

    name, kind, includes = "bench", "measured", "the bench"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, idle: float = 20.0, drift: float = 0.0) -> None:
        self.now = 0.0
        self.idle = idle
        self.drift = drift
        self.joules = {"bench:chip": 0.0, "bench:memory": 0.0}
        self.log: list[str] = []
        module = sys.modules["jaxprune.measure.energy"]
        monkeypatch.setattr(module, "_clock", lambda: self.now)
        monkeypatch.setattr(module, "_sleep", self.rest)

    def spend(self, seconds: float, chip: float, memory: float) -> None:
        """Time passes at these watts above rest."""
        self.now += seconds
        self.joules["bench:chip"] += seconds * (self.idle + chip)
        self.joules["bench:memory"] += seconds * memory

    def rest(self, seconds: float) -> None:
        self.log.append("rest")
        self.spend(seconds, 0.0, 0.0)
        self.idle += self.drift

    def call(self, name: str, seconds: float, chip: float, memory: float):
        def run() -> None:
            self.log.append(name)
            self.spend(seconds, chip, memory)

        return run

    def start(self) -> dict[str, float]:
        return dict(self.joules)

    def stop(self, window: dict[str, float]) -> dict[str, float]:
        return {domain: joules - window[domain] for domain, joules in self.joules.items()}


def test_joules_of_a_call_above_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    calls = {"dense": machine.call("dense", 0.5, 30.0, 4.0), "pruned": machine.call("pruned", 0.25, 30.0, 4.0)}
    found = energy(calls, meters=[machine], repetitions=3)
    assert found["dense"].value == pytest.approx(0.5 * 34)
    assert found["pruned"].value == pytest.approx(0.25 * 34)
    assert found["dense"].spread == pytest.approx(0.0, abs=1e-9)
    assert (found["dense"].kind, found["dense"].repetitions) == ("measured", 3)
    assert found["dense"].source == "bench:chip + bench:memory"
    assert "idle 20.0 W subtracted" in found["dense"].note
    assert "bench: the bench" in found["dense"].note


def test_arrays_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    monkeypatch.setattr(jax, "block_until_ready", lambda arrays: machine.spend(1.0, 30.0, 4.0))
    found = energy({"a": machine.call("a", 0.5, 30.0, 4.0)}, meters=[machine], repetitions=2)["a"]
    assert found.value == pytest.approx(1.5 * 34)


def test_windows_take_turns_and_last(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    energy({name: machine.call(name, 1.0, 1.0, 1.0) for name in "ab"}, meters=[machine], seconds=2.0, repetitions=2)
    assert machine.log == ["a", "b", *["rest", "a", "a", "b", "b"] * 2]


def test_idle_power_is_that_of_the_same_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine warms up: after each rest it draws 5 W more, which the next rest sees.
    machine = Machine(monkeypatch, drift=5.0)
    found = energy({"a": machine.call("a", 1.0, 30.0, 0.0)}, meters=[machine], repetitions=5)["a"]
    assert found.value == pytest.approx(30.0 + 5.0)
    assert found.spread == pytest.approx(0.0, abs=1e-9)


def test_gross(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    found = energy({"a": machine.call("a", 1.0, 30.0, 4.0)}, meters=[machine], idle=False, seconds=1.0)["a"]
    assert found.value == pytest.approx(54.0)
    assert "gross, idle included" in found.note
    assert "shorter than the 10 s" in found.note
    assert "rest" not in machine.log


def test_by_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    found = energy_by_domain({"a": machine.call("a", 1.0, 30.0, 4.0)}, meters=[machine], repetitions=2)["a"]
    assert {domain: figure.value for domain, figure in found.items()} == pytest.approx(
        {"total": 34.0, "bench:chip": 30.0, "bench:memory": 4.0}
    )


def test_a_counter_that_stands_still_is_not_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    found = energy_by_domain({"a": machine.call("a", 1.0, 30.0, 0.0)}, meters=[machine], repetitions=2)["a"]
    assert found["bench:memory"].value is None
    assert "stood still" in found["bench:memory"].note
    assert found["total"].value == pytest.approx(30.0)
    assert "without bench:memory" in found["total"].note
    machine.idle = 0.0
    assert energy({"a": machine.call("a", 1.0, 0.0, 0.0)}, meters=[machine], repetitions=1)["a"].value is None


def test_totals_are_of_the_same_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stands still for one of two calls: with it in the other's total, that one would look worse."""
    machine = Machine(monkeypatch)
    calls = {"dense": machine.call("dense", 1.0, 30.0, 4.0), "pruned": machine.call("pruned", 1.0, 30.0, 0.0)}
    found = energy_by_domain(calls, meters=[machine], repetitions=2)
    assert found["dense"]["total"].value == found["pruned"]["total"].value == pytest.approx(30.0)
    assert found["dense"]["total"].source == found["pruned"]["total"].source == "bench:chip"
    assert "without bench:memory, which stood still" in found["dense"]["total"].note
    assert found["dense"]["bench:memory"].value == pytest.approx(4.0)


def test_without_a_common_domain_there_is_no_total(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, idle=0.0)
    calls = {"a": machine.call("a", 1.0, 30.0, 0.0), "b": machine.call("b", 1.0, 0.0, 4.0)}
    for figure in energy(calls, meters=[machine], repetitions=1).values():
        assert figure.value is None and "bench:chip, bench:memory stood still" in figure.note


def test_modelled_stays_modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.kind = "modelled"
    assert energy({"a": machine.call("a", 1.0, 1.0, 1.0)}, meters=[machine], repetitions=1)["a"].kind == "modelled"
    with record_energy([machine]) as record:
        machine.rest(1.0)
    assert record.total.kind == record.domains["bench:chip"].kind == "modelled"


def test_a_run_that_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    with record_energy([machine]) as record:
        machine.spend(8.0, 30.0, 4.0)
        assert record.total.value is None
    assert record.seconds.value == 8.0
    assert record.total.value == pytest.approx(8 * 54)
    assert record.domains["bench:memory"].value == pytest.approx(32)
    assert "gross" in record.total.note


def test_windows_end_when_a_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    ended = []
    monkeypatch.setattr(machine, "stop", lambda window: ended.append(window) or {})
    runs = iter([None, None])  # the warm-up, one more, then no more

    with pytest.raises(StopIteration):
        energy({"a": lambda: next(runs)}, meters=[machine], idle=False)
    with pytest.raises(KeyError), record_energy([machine]):
        raise KeyError
    assert len(ended) == 2


def test_without_a_sensor_there_is_a_reason_and_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_meter():
        raise MeterUnavailable("hidden by the host")

    module = sys.modules["jaxprune.measure.energy"]
    monkeypatch.setattr(module, "RaplMeter", no_meter)
    monkeypatch.setattr(module, "NvmlMeter", no_meter)
    runs = []
    found = energy({"a": lambda: runs.append(1)})["a"]
    assert str(found) == "not measured (no RAPL: hidden by the host; no NVML: hidden by the host)"
    assert not runs
    with record_energy() as record:
        pass
    assert record.total.value is None
    assert find_meters().meters == ()


def test_what_is_missing_is_said_beside_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_meter():
        raise MeterUnavailable("hidden by the host")

    machine = Machine(monkeypatch)
    module = sys.modules["jaxprune.measure.energy"]
    monkeypatch.setattr(module, "RaplMeter", no_meter)
    monkeypatch.setattr(module, "NvmlMeter", lambda: machine)
    found = energy({"a": machine.call("a", 1.0, 1.0, 1.0)}, repetitions=1)["a"]
    assert "no RAPL: hidden by the host" in found.note


def test_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    with pytest.raises(ValueError, match="calls is empty"):
        energy({}, meters=[machine])
    with pytest.raises(ValueError, match="seconds=0"):
        energy({"a": lambda: None}, meters=[machine], seconds=0)
    with pytest.raises(ValueError, match="more than once"):
        energy({"a": lambda: None}, meters=[machine, machine])
    other = Machine(monkeypatch)
    other.name = "zeus"
    with pytest.raises(ValueError, match="zeus"):
        energy({"a": lambda: None}, meters=[machine, other])
