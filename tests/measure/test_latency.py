"""Latency on a clock of the test's own: medians, spread, interleaving, pairing. Nothing is asserted of real time."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.measure import latency, ratio


class Machine:
    """A clock that moves only when a call takes its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.log: list[str] = []
        monkeypatch.setattr(sys.modules["jaxprune.measure.latency"], "_clock", lambda: self.now)

    def call(self, name: str, times: list[float]):
        """A call that takes the next of `times`, over and over."""
        count = 0

        def run() -> np.ndarray:
            nonlocal count
            self.now += times[count % len(times)]
            count += 1
            self.log.append(name)
            return np.zeros(2)

        return run


def test_median_and_half_interquartile_range(monkeypatch) -> None:
    machine = Machine(monkeypatch)
    times = [100.0, 1.0, 2.0, 3.0, 4.0, 50.0]  # the first is the warm-up
    found = latency({"a": machine.call("a", times)}, repetitions=5, warmup=1)["a"]
    low, middle, high = np.percentile(times[1:], [25, 50, 75])
    assert found.value == middle == 3.0
    assert found.spread == (high - low) / 2
    assert (found.repetitions, found.unit, found.kind) == (5, "s", "measured")


def test_calls_take_turns_in_both_orders(monkeypatch) -> None:
    machine = Machine(monkeypatch)
    latency({name: machine.call(name, [1.0]) for name in "ab"}, repetitions=4, warmup=2)
    assert "".join(machine.log) == "aabb" + "ab" + "ba" + "ab" + "ba"


def test_ratio_is_of_pairs(monkeypatch) -> None:
    # The machine slows down tenfold half way: medians of each would say anything, the pairs say 2.
    slow = [1.0] * 4 + [10.0] * 3
    machine = Machine(monkeypatch)
    found = ratio(machine.call("a", [2 * t for t in slow]), machine.call("b", slow), repetitions=6, warmup=1)
    assert found.value == 2.0
    assert found.spread == 0.0


def test_arrays_are_waited_for(monkeypatch) -> None:
    machine = Machine(monkeypatch)

    def wait(arrays: str) -> None:
        assert arrays == "arrays"
        machine.now += 2.0

    monkeypatch.setattr(jax, "block_until_ready", wait)
    assert latency({"a": lambda: "arrays"}, repetitions=3)["a"].value == 2.0
    assert ratio(lambda: "arrays", lambda: "arrays", repetitions=3).value == 1.0


def test_real_calls() -> None:
    found = jp.measure.latency({"sum": lambda: {"x": jnp.ones(3).sum()}}, repetitions=1)["sum"]
    assert found.value is not None
    assert found.value > 0
    assert found.spread is None


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="calls is empty"):
        latency({})
    with pytest.raises(ValueError, match="warmup=0"):
        latency({"a": lambda: None}, warmup=0)
    with pytest.raises(ValueError, match="repetitions=0"):
        ratio(lambda: None, lambda: None, repetitions=0)
