"""`Figure`: one quantity, and how it is known."""

import dataclasses
import math
from typing import Any, Literal, Self, get_args

Kind = Literal["measured", "modelled", "theoretical"]

# Scales of a unit, from large to small: what is printed, and what one of it is worth in the unit itself.
_SCALES: dict[str, tuple[tuple[str, float], ...]] = {
    "s": (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)),
    "bytes": (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0)),
    "J": (("MJ", 1e6), ("kJ", 1e3), ("J", 1.0), ("mJ", 1e-3), ("µJ", 1e-6)),
    "W": (("kW", 1e3), ("W", 1.0), ("mW", 1e-3)),
}
# Counts get the prefix alone: "3.1 M MACs".
_COUNTS = (("E ", 1e18), ("P ", 1e15), ("T ", 1e12), ("G ", 1e9), ("M ", 1e6), ("k ", 1e3), ("", 1.0))
_DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Figure:
    """A quantity with its unit, and whether it was measured, modelled or derived from theory.

    Printing never drops the kind. Numbers are printed to three significant digits.

    Attributes:
      value: in `unit`; None where nothing was measured, and then `note` says why.
      unit: "s", "bytes", "J", "W", "FLOPs", "MACs", "inferences", "%" or "" for a ratio.
      kind: "measured" by a clock, a counter or a file's size; "modelled" by software that estimates (XLA's cost
        analysis, codecarbon); "theoretical" by a formula.
      source: the instrument or the formula: "wall clock, interleaved medians", "rapl:package-0", "RigL, app. H".
      spread: in `unit`; half of the interquartile range, unless `note` or `source` names another.
      repetitions: how many measurements are behind it.
      note: what is included, what is left out, what is assumed.

    Raises:
      ValueError: `kind` is none of the three.

    Example:
      >>> print(Figure(3.192e-3, "s", "measured", "wall clock", spread=2.4e-5))
      3.19 ms ± 0.02 (measured)
      >>> print(Figure(1.25e9, "FLOPs", "theoretical", "3 f_S", note="assumes hardware that skips zeros"))
      1.25 G FLOPs (theoretical)
      >>> print(Figure.absent("J", "no RAPL, no NVML"))
      not measured (no RAPL, no NVML)
    """

    value: float | None
    unit: str
    kind: Kind
    source: str
    spread: float | None = None
    repetitions: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"kind={self.kind!r} is none of {', '.join(get_args(Kind))}. Say how the figure of {self.source!r} is "
                "known."
            )
        if self.value is None and not self.note:
            raise ValueError("a figure without a value needs a note that says why; use Figure.absent(unit, reason).")

    @classmethod
    def absent(cls, unit: str, reason: str) -> Self:
        """A figure that could not be measured.

        Args:
          unit: the unit it would have had.
          reason: why, such as "no RAPL, no NVML".

        Returns:
          A figure without a value.

        Example:
          >>> Figure.absent("J", "no sensor").value is None
          True
        """
        return cls(None, unit, "measured", "", note=reason)

    def __str__(self) -> str:
        if self.value is None:
            return f"not measured ({self.note})"
        return f"{self.quantity()} ({self.kind})"

    def quantity(self) -> str:
        """Value, unit and spread without the kind, for a table that has a column of its own for the kind.

        Example:
          >>> Figure(2048.0, "bytes", "measured", "file size").quantity()
          '2.05 kB'
        """
        if self.value is None:
            return "not measured"
        label, scale = _scale_of(self.value, self.unit)
        value = self.value / scale
        decimals = _decimals(value) if self.unit != "bytes" or scale != 1.0 else 0
        text = f"{value:.{decimals}f}" if math.isfinite(value) else str(value)
        text = _grouped(text, label)
        if self.spread is None:
            return text
        return f"{text} ± {_spread(self.spread / scale, decimals)}"

    def describe(self) -> str:
        """Everything on one line: the figure, its source, how many repetitions, its note.

        Example:
          >>> Figure(2.0, "s", "measured", "wall clock", repetitions=5, note="dense").describe()
          '2.00 s (measured); wall clock; n=5; dense'
        """
        if self.value is None:
            return str(self)
        count = "" if self.repetitions is None else f"n={self.repetitions}"
        return "; ".join(part for part in (str(self), self.source, count, self.note) if part)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them; an infinite value becomes the string "inf".

        Example:
          >>> Figure(2.0, "s", "measured", "wall clock").to_dict()["kind"]
          'measured'
        """
        fields = dataclasses.asdict(self)
        for name in ("value", "spread"):
            number = fields[name]
            if number is not None:
                fields[name] = float(number) if math.isfinite(number) else str(float(number))
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Args:
          fields: what `to_dict` gave, also after a round trip through JSON.

        Returns:
          The figure.

        Raises:
          ValueError: a field is unknown or missing.

        Example:
          >>> figure = Figure(2.0, "s", "measured", "wall clock")
          >>> Figure.from_dict(figure.to_dict()) == figure
          True
        """
        known = {field.name for field in dataclasses.fields(cls)}
        wrong = set(fields) - known or {"value", "unit", "kind", "source"} - set(fields)
        if wrong:
            raise ValueError(
                f"not the fields of a Figure: {sorted(wrong)} are unknown or missing; it has {sorted(known)}."
            )
        numbers = {name: float(fields[name]) for name in ("value", "spread") if fields.get(name) is not None}
        return cls(**{**fields, **numbers})


def _scale_of(value: float, unit: str) -> tuple[str, float]:
    """The label to print after a value, and what it is worth."""
    if unit in {"", "%"}:
        return unit, 1.0
    scales = _SCALES.get(unit) or tuple((f"{prefix}{unit}", scale) for prefix, scale in _COUNTS)
    if value == 0 or not math.isfinite(value):
        return unit, 1.0
    # The margin makes 999.9 print as 1.00 of the next scale, not as 1000.
    fitting = [pair for pair in scales if abs(value) >= pair[1] * (1 - 0.5 * 10.0**-_DIGITS)]
    return fitting[0] if fitting else scales[-1]


def _decimals(value: float) -> int:
    if value == 0 or not math.isfinite(value):
        return 0
    rounded = float(f"{value:.{_DIGITS - 1}e}")
    return max(_DIGITS - 1 - math.floor(math.log10(abs(rounded))), 0)


def _grouped(text: str, label: str) -> str:
    return f"{text}{label}" if label == "%" else f"{text} {label}".rstrip()


def _spread(spread: float, decimals: int) -> str:
    text = f"{spread:.{decimals}f}"
    if spread and float(text) == 0:
        return f"<{10.0**-decimals:.{decimals}f}"
    return text
