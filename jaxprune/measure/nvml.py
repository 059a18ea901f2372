"""NVML: the energy counters of NVIDIA GPUs, Volta and newer."""

from collections.abc import Sequence
from typing import Any

from jaxprune.measure.figure import Kind
from jaxprune.measure.meters import MeterUnavailable


class NvmlMeter:
    """Reads `nvmlDeviceGetTotalEnergyConsumption` of each GPU; needs the extra `nvml` (nvidia-ml-py).

    It counts the whole board, memory included, whichever process uses it. GPUs are numbered as NVML does, not as
    `CUDA_VISIBLE_DEVICES` renumbers them.

    Args:
      devices: indices of NVML; all GPUs that have a counter unless given.

    Raises:
      MeterUnavailable: there is no library, no driver, no GPU, or a GPU that was asked for has no counter.

    Example:
      >>> try:
      ...     domains = NvmlMeter().domains
      ... except MeterUnavailable as reason:
      ...     domains = ()
      >>> all(name.startswith("nvml:") for name in domains)
      True
    """

    name: str = "nvml"
    kind: Kind = "measured"

    def __init__(self, devices: Sequence[int] | None = None) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise MeterUnavailable("nvidia-ml-py is not installed; pip install 'jaxprune[nvml]'") from error
        self._library: Any = pynvml
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise MeterUnavailable(f"NVML does not start: {error}") from error
        self._handles: dict[str, Any] = {}
        silent = {}
        for index in range(count) if devices is None else devices:
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            except pynvml.NVMLError as error:
                silent[index] = str(error)
            else:
                self._handles[f"nvml:{index}"] = handle
        reasons = "; ".join(f"GPU {index}: {reason}" for index, reason in silent.items())
        if not self._handles or (silent and devices is not None):
            raise MeterUnavailable(reasons or "NVML finds no GPU")
        self.includes = "GPU boards with their memory" + (f" (without {reasons})" if reasons else "")

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of the counters, such as "nvml:0"."""
        return tuple(self._handles)

    def start(self) -> dict[str, int]:
        """Begins a window: the counters in millijoules."""
        return {name: self._library.nvmlDeviceGetTotalEnergyConsumption(h) for name, h in self._handles.items()}

    def stop(self, window: dict[str, int]) -> dict[str, float]:
        """Ends a window: joules by GPU."""
        return {name: (now - window[name]) * 1e-3 for name, now in self.start().items()}
