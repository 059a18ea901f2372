"""Meters of other libraries: zeus, which reads sensors, and codecarbon, which mostly estimates."""

import itertools
from typing import Any

from jaxprune.measure.figure import Kind
from jaxprune.measure.meters import MeterUnavailable

_JOULES_OF_A_KILOWATT_HOUR = 3.6e6


class ZeusMeter:
    """Reads through `zeus.monitor.ZeusMonitor`; needs the extra `zeus`.

    It reads the counters that `RaplMeter` and `NvmlMeter` read, and others: older NVIDIA GPUs by sampling their power,
    AMD GPUs, and through its daemon `zeusd` without root. Energies of a system on a chip are left out. Zeus may start
    helper processes, so call it under `if __name__ == "__main__":`.

    Args:
      options: for `ZeusMonitor`, such as `gpu_indices=[0]`.

    Raises:
      MeterUnavailable: zeus is not installed, does not start, or finds no sensor.

    Example:
      >>> try:
      ...     kind = ZeusMeter().kind
      ... except MeterUnavailable as reason:
      ...     kind = "measured"
      >>> kind
      'measured'
    """

    name: str = "zeus"
    kind: Kind = "measured"

    def __init__(self, **options: Any) -> None:
        try:
            from zeus.monitor import ZeusMonitor  # type: ignore[import-not-found]
        except ImportError as error:
            raise MeterUnavailable("zeus is not installed; pip install 'jaxprune[zeus]'") from error
        try:
            self._monitor: Any = ZeusMonitor(**{"sync_execution_with": "jax", **options})
        except Exception as error:
            raise MeterUnavailable(f"zeus does not start: {error}") from error
        self._names = (f"jaxprune-{k}" for k in itertools.count())
        seen = self.stop(self.start())
        if not seen:
            raise MeterUnavailable("zeus finds no sensor, of processors or of GPUs")
        self.includes = "of the whole machine: " + ", ".join(seen)

    def start(self) -> str:
        """Begins a window."""
        window = next(self._names)
        self._monitor.begin_window(window)
        return window

    def stop(self, window: str) -> dict[str, float]:
        """Ends a window: joules by domain, such as "zeus:gpu-0", "zeus:cpu-0" and "zeus:dram-0"."""
        seen = self._monitor.end_window(window)
        parts = {"gpu": seen.gpu_energy, "cpu": seen.cpu_energy, "dram": seen.dram_energy}
        return {
            f"zeus:{part}-{index}": float(joules)
            for part, energies in parts.items()
            for index, joules in (energies or {}).items()
        }


class CodeCarbonMeter:
    """Estimates through codecarbon's `OfflineEmissionsTracker`; needs the extra `codecarbon`. Always *modelled*.

    Where codecarbon finds no counter it multiplies the load of the processor by a table of nameplate powers, and
    memory gets a constant power in any case. Its result does not say which was done, so nothing of it is called
    measured. Nothing is sent, looked up or written.

    Args:
      options: for the tracker.

    Raises:
      MeterUnavailable: codecarbon is not installed or does not start.

    Example:
      >>> CodeCarbonMeter.kind
      'modelled'
    """

    name: str = "codecarbon"
    kind: Kind = "modelled"
    includes: str = "processors and memory of the whole machine by codecarbon's tables, GPUs where it sees them"

    def __init__(self, **options: Any) -> None:
        try:
            from codecarbon import OfflineEmissionsTracker  # type: ignore[import-not-found]
        except ImportError as error:
            raise MeterUnavailable("codecarbon is not installed; pip install 'jaxprune[codecarbon]'") from error
        # The country decides about the carbon of a joule, which is not asked here.
        quiet = {"country_iso_code": "USA", "save_to_file": False, "log_level": "critical", "allow_multiple_runs": True}
        self._tracker: Any = OfflineEmissionsTracker(**{**quiet, **options})
        self._names = (f"jaxprune-{k}" for k in itertools.count())
        self.stop(self.start())  # the tracker hides its errors, so see whether it answers

    def start(self) -> str:
        """Begins a window."""
        window = next(self._names)
        self._tracker.start_task(window)
        return window

    def stop(self, window: str) -> dict[str, float]:
        """Ends a window: joules by domain, such as "codecarbon:cpu", "codecarbon:ram" and "codecarbon:gpu"."""
        seen = self._tracker.stop_task(window)
        if seen is None:
            raise MeterUnavailable("codecarbon does not start; its own log, with log_level='debug', says why")
        parts = {"cpu": seen.cpu_energy, "ram": seen.ram_energy, "gpu": seen.gpu_energy}
        joules = {f"codecarbon:{part}": float(energy) * _JOULES_OF_A_KILOWATT_HOUR for part, energy in parts.items()}
        return {name: energy for name, energy in joules.items() if energy or not name.endswith("gpu")}
