"""RAPL: the energy counters of Intel and AMD processors, read from sysfs."""

import dataclasses
import threading
from pathlib import Path

from jaxprune.measure.figure import Kind
from jaxprune.measure.meters import MeterUnavailable

# A counter must be read once between two wraps. No package draws more than this for long.
_MOST_WATTS = 2000.0


@dataclasses.dataclass(frozen=True)
class _Domain:
    """One counter: its name, its file, and the joules after which it starts again from zero."""

    name: str
    counter: Path
    wraps_at: float

    def read(self) -> float:
        return _number(self.counter) * 1e-6


class RaplWindow:
    """Joules since a start. Counters wrap, so that a long window reads them from time to time, in a thread.

    Attributes:
      joules: by domain, up to the last `update`.
    """

    def __init__(self, domains: tuple[_Domain, ...], interval: float) -> None:
        self._domains = domains
        self._interval = interval
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._failure: MeterUnavailable | None = None
        self.joules = {domain.name: 0.0 for domain in domains}
        self._last = {domain.name: domain.read() for domain in domains}
        threading.Thread(target=self._watch, daemon=True).start()

    def update(self) -> None:
        """Reads all counters, and adds what they have counted; a lower number than before has wrapped once."""
        with self._lock:
            for domain in self._domains:
                now = domain.read()
                moved = now - self._last[domain.name]
                self.joules[domain.name] += moved if moved >= 0 else moved + domain.wraps_at
                self._last[domain.name] = now

    def end(self) -> dict[str, float]:
        """Stops the thread, and returns the joules by domain."""
        self._ended.set()
        if self._failure is not None:
            raise self._failure
        self.update()
        return dict(self.joules)

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            try:
                self.update()
            except MeterUnavailable as error:
                self._failure = error  # a wrap may have been missed: `end` says so
                return


class RaplMeter:
    """Reads the package and DRAM counters of the processors under `/sys/class/powercap`.

    It counts the whole machine, whatever runs on it. Packages do not contain DRAM; the counters of cores and of the
    integrated GPU are parts of a package, `psys` and the `intel-rapl-mmio` zones repeat it, and none of them is read.
    Since Linux 5.10 only root may read; virtual machines and containers mostly have no counters.

    Args:
      root: the folder of powercap.

    Raises:
      MeterUnavailable: there are no counters, or they may not be read.

    Example:
      >>> RaplMeter("/nowhere")
      Traceback (most recent call last):
      jaxprune.measure.meters.MeterUnavailable: /nowhere is missing: no powercap in this kernel, or a virtual machine
    """

    name: str = "rapl"
    kind: Kind = "measured"

    def __init__(self, root: str | Path = Path("/sys/class/powercap")) -> None:
        root = Path(root)
        if not root.is_dir():
            raise MeterUnavailable(f"{root} is missing: no powercap in this kernel, or a virtual machine")
        self._domains = _domains(root)
        if not self._domains:
            raise MeterUnavailable(f"{root} has no intel-rapl package: the processor, or the machine's host, hides it")
        for domain in self._domains:
            domain.read()
        # Half of the shortest time to a wrap.
        self._interval = max(min(domain.wraps_at for domain in self._domains) / _MOST_WATTS / 2, 0.1)
        dram = any(domain.name.endswith("dram") for domain in self._domains)
        self.includes = f"processor packages {'and' if dram else 'without'} DRAM, of the whole machine"

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of the counters, such as "rapl:package-0" and "rapl:package-0/dram"."""
        return tuple(domain.name for domain in self._domains)

    def start(self) -> RaplWindow:
        """Begins a window."""
        return RaplWindow(self._domains, self._interval)

    def stop(self, window: RaplWindow) -> dict[str, float]:
        """Ends a window: joules by domain."""
        return window.end()


def _domains(root: Path) -> tuple[_Domain, ...]:
    # Zones appear in the root and inside their package as well, by links; in a container sometimes inside only.
    zones = {path.name: path for path in [*root.glob("intel-rapl:*"), *root.glob("intel-rapl:*/intel-rapl:*:*")]}
    names = {zone: _text(path / "name") for zone, path in zones.items()}
    found = []
    for zone, name in sorted(names.items()):
        parent = names.get(zone.rpartition(":")[0])
        if name.startswith("package"):
            label = name
        elif name == "dram":
            label = f"{parent}/dram" if parent else "dram"
        else:
            continue
        path = zones[zone]
        wraps_at = _number(path / "max_energy_range_uj") * 1e-6
        if wraps_at <= 0:
            raise MeterUnavailable(f"{path / 'max_energy_range_uj'} is {wraps_at}: where the counter wraps is unknown")
        found.append(_Domain(f"rapl:{label}", path / "energy_uj", wraps_at))
    return tuple(found)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError as error:
        raise MeterUnavailable(
            f"permission denied on {path}: since Linux 5.10 only root reads it; run as root, or let root run "
            "`chmod -R a+r /sys/class/powercap/intel-rapl`"
        ) from error
    except OSError as error:
        raise MeterUnavailable(f"{path} cannot be read: {error.strerror or error}") from error


def _number(path: Path) -> int:
    text = _text(path)
    try:
        return int(text)
    except ValueError as error:
        raise MeterUnavailable(f"{path} holds {text!r}, which is no number") from error
