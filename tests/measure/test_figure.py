"""Figures: what is printed, that the kind is never dropped, JSON."""

import json
import math
from typing import Any

import pytest

from jaxprune.measure import Figure


def figure(value: float, unit: str, spread: float | None = None) -> Figure:
    return Figure(value, unit, "measured", "test", spread)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (figure(3.192e-3, "s", 2.4e-5), "3.19 ms ± 0.02 (measured)"),
        (figure(999.96e-6, "s"), "1.00 ms (measured)"),
        (figure(61.0, "s"), "61.0 s (measured)"),
        (figure(12.0, "bytes"), "12 bytes (measured)"),
        (figure(1_234_567.0, "bytes", 10.0), "1.23 MB ± <0.01 (measured)"),
        (figure(3.1e6, "MACs"), "3.10 M MACs (measured)"),
        (figure(7.0, "inferences"), "7.00 inferences (measured)"),
        (figure(0.0, "J", 0.0), "0 J ± 0 (measured)"),
        (figure(-0.25, "J"), "-250 mJ (measured)"),
        (figure(12.34, "%"), "12.3% (measured)"),
        (figure(1.031, "", 0.02), "1.03 ± 0.02 (measured)"),
        (figure(math.inf, "inferences"), "inf inferences (measured)"),
        (Figure.absent("J", "no RAPL, no NVML"), "not measured (no RAPL, no NVML)"),
        (Figure(2.0, "FLOPs", "theoretical", "formula"), "2.00 FLOPs (theoretical)"),
    ],
)
def test_prints(shown: Figure, expected: str) -> None:
    assert str(shown) == expected


@pytest.mark.parametrize("kind", ["measured", "modelled", "theoretical"])
def test_kind_is_in_every_line(kind) -> None:
    shown = Figure(1.0, "J", kind, "source", 0.1, 3, "note")
    assert kind in str(shown)
    assert kind in shown.describe()
    assert all(part in shown.describe() for part in ("source", "n=3", "note"))


def test_survives_json() -> None:
    for kept in (Figure(math.inf, "inferences", "measured", "x", 0.5, 3, "n"), Figure.absent("J", "no sensor")):
        assert Figure.from_dict(json.loads(json.dumps(kept.to_dict(), allow_nan=False))) == kept


def test_says_what_is_wrong() -> None:
    unknown: Any = "estimated"
    with pytest.raises(ValueError, match="estimated"):
        Figure(1.0, "J", unknown, "nameplate")
    with pytest.raises(ValueError, match="says why"):
        Figure(None, "J", "measured", "rapl")
    with pytest.raises(ValueError, match="joules"):
        Figure.from_dict({"value": 1.0, "unit": "J", "kind": "measured", "source": "x", "joules": 1})
