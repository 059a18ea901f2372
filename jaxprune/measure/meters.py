"""What an energy meter is: something that tells the joules between two moments, by domain."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxprune.measure.figure import Kind


class MeterUnavailable(RuntimeError):
    """There is no such sensor here, or it may not be read; the message is the reason.

    Example:
      >>> str(MeterUnavailable("/sys/class/powercap is missing"))
      '/sys/class/powercap is missing'
    """


@runtime_checkable
class Meter(Protocol):
    """Any source of joules. Write your own (a plug, a power supply) with these five members.

    The constructor raises `MeterUnavailable` where there is nothing to read, so that a meter that exists works.

    Attributes:
      name: a short name, such as "rapl".
      kind: "measured" where a sensor counts, "modelled" where software estimates.
      includes: in words, what is counted and what is not.

    Example:
      >>> class Stub:
      ...     name, kind, includes = "stub", "measured", "one device"
      ...     def start(self): return 0.0
      ...     def stop(self, window): return {"stub:0": 1.5}
      >>> isinstance(Stub(), Meter)
      True
    """

    name: str
    kind: Kind
    includes: str

    def start(self) -> Any:
        """Begins a window, and returns what `stop` needs."""
        ...

    def stop(self, window: Any) -> Mapping[str, float]:
        """Ends a window: the joules since its start by domain, such as "rapl:package-0". Domains do not overlap."""
        ...
