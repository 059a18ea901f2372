"""Meters on sensors that the test makes: a sysfs tree, an NVML library, zeus and codecarbon."""

import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from jaxprune.measure import CodeCarbonMeter, Meter, MeterUnavailable, NvmlMeter, RaplMeter, ZeusMeter, find_meters
from jaxprune.measure.rapl import RaplWindow

RANGE_UJ = 262_143_328_850
DRAM_RANGE_UJ = 65_712_999_613


class Powercap:
    """A sysfs tree with two packages, DRAM, and zones that must not be counted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "intel-rapl").mkdir(parents=True)
        self.zone("intel-rapl:0", "package-0", RANGE_UJ)
        self.zone("intel-rapl:0:0", "core", RANGE_UJ)
        self.zone("intel-rapl:0:1", "dram", DRAM_RANGE_UJ)
        self.zone("intel-rapl:1", "package-1", RANGE_UJ)
        self.zone("intel-rapl:2", "psys", RANGE_UJ)
        self.zone("intel-rapl-mmio:0", "package-0", RANGE_UJ)
        # sysfs links each zone from its package as well.
        (root / "intel-rapl:0" / "intel-rapl:0:1").symlink_to(root / "intel-rapl:0:1")

    def zone(self, folder: str, name: str, wraps_at: int) -> None:
        path = self.root / folder
        path.mkdir()
        (path / "name").write_text(name + "\n")
        (path / "max_energy_range_uj").write_text(f"{wraps_at}\n")
        self.set(folder, 0)

    def set(self, folder: str, microjoules: int) -> None:
        # In one step, since a meter may be reading.
        new = self.root / folder / "new"
        new.write_text(f"{microjoules}\n")
        new.replace(self.root / folder / "energy_uj")


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    return Powercap(tmp_path / "powercap")


def test_rapl_reads_packages_and_dram_apart(powercap: Powercap) -> None:
    meter = RaplMeter(powercap.root)
    assert isinstance(meter, Meter)
    assert meter.domains == ("rapl:package-0", "rapl:package-0/dram", "rapl:package-1")
    assert "and DRAM" in meter.includes
    powercap.set("intel-rapl:0", 1_000_000)
    window = meter.start()
    for zone, microjoules in {"0": 3_500_000, "0:0": 9_000_000, "0:1": 250_000, "1": 1_250_000, "2": 7_000_000}.items():
        powercap.set(f"intel-rapl:{zone}", microjoules)
    assert meter.stop(window) == pytest.approx(
        {"rapl:package-0": 2.5, "rapl:package-0/dram": 0.25, "rapl:package-1": 1.25}
    )


def test_rapl_counters_wrap_by_their_own_range(powercap: Powercap) -> None:
    powercap.set("intel-rapl:0", RANGE_UJ - 1_000_000)
    powercap.set("intel-rapl:0:1", DRAM_RANGE_UJ - 2_000_000)
    meter = RaplMeter(powercap.root)
    window = meter.start()
    powercap.set("intel-rapl:0", 500_000)
    powercap.set("intel-rapl:0:1", 1_000_000)
    found = meter.stop(window)
    assert found["rapl:package-0"] == pytest.approx(1.5)
    assert found["rapl:package-0/dram"] == pytest.approx(3.0)
    assert found["rapl:package-1"] == 0


def test_rapl_counters_that_wrap_twice_are_read_in_between(powercap: Powercap) -> None:
    meter = RaplMeter(powercap.root)
    window = meter.start()
    for part in (0.6, 0.2, 0.8, 0.4):  # 0.6, wrap to 1.2, 1.8, wrap to 2.4 ranges
        powercap.set("intel-rapl:1", int(part * RANGE_UJ))
        window.update()
    assert meter.stop(window)["rapl:package-1"] == pytest.approx(2.4 * RANGE_UJ * 1e-6)


def test_rapl_window_reads_by_itself(powercap: Powercap) -> None:
    window = RaplWindow(RaplMeter(powercap.root)._domains, interval=0.001)
    for part in (0.6, 0.2):
        before = window.joules["rapl:package-1"]
        powercap.set("intel-rapl:1", int(part * RANGE_UJ))
        limit = time.monotonic() + 30
        while window.joules["rapl:package-1"] == before and time.monotonic() < limit:
            time.sleep(0.001)
    assert window.end()["rapl:package-1"] == pytest.approx(1.2 * RANGE_UJ * 1e-6)


def test_rapl_in_a_container_has_zones_inside_packages_only(powercap: Powercap) -> None:
    (powercap.root / "intel-rapl:0" / "intel-rapl:0:1").unlink()
    (powercap.root / "intel-rapl:0:1").rename(powercap.root / "intel-rapl:0" / "intel-rapl:0:1")
    assert "rapl:package-0/dram" in RaplMeter(powercap.root).domains


def test_rapl_without_dram_says_so(powercap: Powercap) -> None:
    (powercap.root / "intel-rapl:0:1" / "name").write_text("uncore")
    meter = RaplMeter(powercap.root)
    assert meter.domains == ("rapl:package-0", "rapl:package-1")
    assert "without DRAM" in meter.includes


def test_rapl_missing(tmp_path: Path) -> None:
    with pytest.raises(MeterUnavailable, match="nowhere is missing"):
        RaplMeter(tmp_path / "nowhere")
    with pytest.raises(MeterUnavailable, match="has no intel-rapl package"):
        RaplMeter(tmp_path)


def test_rapl_denied(powercap: Powercap, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, to whom nothing is denied.
    read_text = Path.read_text

    def denied(self: Path, *args, **kwargs) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(MeterUnavailable, match=r"permission denied on .*energy_uj.*root"):
        RaplMeter(powercap.root)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("energy_uj", "what", "no number"),
        ("max_energy_range_uj", "0", "wraps is unknown"),
        ("max_energy_range_uj", None, "cannot be read"),
    ],
)
def test_rapl_damaged(powercap: Powercap, file: str, text: str | None, message: str) -> None:
    path = powercap.root / "intel-rapl:1" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(MeterUnavailable, match=message):
        RaplMeter(powercap.root)


def nvml(energies: list[int | None], start_error: str = "") -> types.ModuleType:
    """A stand-in for `pynvml`: millijoules of each GPU, None where it has no counter."""
    module: Any = types.ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def init() -> None:
        if start_error:
            raise NVMLError(start_error)

    def handle(index: int) -> int:
        if index >= len(energies):
            raise NVMLError("Invalid Argument")
        return index

    def read(index: int) -> int:
        energy = energies[index]
        if energy is None:
            raise NVMLError("Not Supported")
        return energy

    module.NVMLError = NVMLError
    module.nvmlInit = init
    module.nvmlDeviceGetCount = lambda: len(energies)
    module.nvmlDeviceGetHandleByIndex = handle
    module.nvmlDeviceGetTotalEnergyConsumption = read
    return module


def test_nvml_reads_millijoules_of_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    energies: list[int | None] = [5_000, None, 7_000]
    monkeypatch.setitem(sys.modules, "pynvml", nvml(energies))
    meter = NvmlMeter()
    assert isinstance(meter, Meter)
    assert meter.domains == ("nvml:0", "nvml:2")
    assert "GPU 1: Not Supported" in meter.includes
    window = meter.start()
    energies[0], energies[2] = 6_500, 7_250
    assert meter.stop(window) == pytest.approx({"nvml:0": 1.5, "nvml:2": 0.25})
    assert NvmlMeter([2]).domains == ("nvml:2",)
    for devices in ([1], [0, 1], [9]):
        with pytest.raises(MeterUnavailable, match=r"GPU [19]"):
            NvmlMeter(devices)


def test_nvml_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MeterUnavailable, match=r"jaxprune\[nvml\]"):
        NvmlMeter()
    monkeypatch.setitem(sys.modules, "pynvml", nvml([1], start_error="NVML Shared Library Not Found"))
    with pytest.raises(MeterUnavailable, match="does not start: NVML Shared Library Not Found"):
        NvmlMeter()
    monkeypatch.setitem(sys.modules, "pynvml", nvml([]))
    with pytest.raises(MeterUnavailable, match="finds no GPU"):
        NvmlMeter()


def test_find_meters_keeps_their_order_and_the_reasons(powercap: Powercap, monkeypatch: pytest.MonkeyPatch) -> None:
    energy = sys.modules["jaxprune.measure.energy"]
    monkeypatch.setitem(sys.modules, "pynvml", nvml([1]))
    monkeypatch.setattr(energy, "RaplMeter", lambda: RaplMeter(powercap.root))
    assert [meter.name for meter in find_meters().meters] == ["rapl", "nvml"]
    assert find_meters().reason == ""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(energy, "RaplMeter", lambda: RaplMeter(powercap.root / "nowhere"))
    found = find_meters()
    assert found.meters == ()
    assert "no RAPL" in found.reason
    assert "no NVML: nvidia-ml-py is not installed" in found.reason


def zeus(**energies) -> dict[str, types.ModuleType]:
    """A stand-in for zeus 0.16: the windows of `ZeusMonitor`."""
    monitor: Any = types.ModuleType("zeus.monitor")

    class ZeusMonitor:
        def __init__(self, sync_execution_with: str) -> None:
            assert sync_execution_with == "jax"
            self.windows: set[str] = set()

        def begin_window(self, key: str) -> None:
            assert key not in self.windows
            self.windows.add(key)

        def end_window(self, key: str) -> types.SimpleNamespace:
            self.windows.remove(key)
            return types.SimpleNamespace(**energies)

    monitor.ZeusMonitor = ZeusMonitor
    return {"zeus": types.ModuleType("zeus"), "zeus.monitor": monitor}


def test_zeus(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = zeus(gpu_energy={0: 3.0, 1: 1.0}, cpu_energy={0: 2.0}, dram_energy=None)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    meter = ZeusMeter()
    assert isinstance(meter, Meter)
    assert meter.kind == "measured"
    assert meter.stop(meter.start()) == {"zeus:gpu-0": 3.0, "zeus:gpu-1": 1.0, "zeus:cpu-0": 2.0}
    for name, module in zeus(gpu_energy={}, cpu_energy=None, dram_energy=None).items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(MeterUnavailable, match="finds no sensor"):
        ZeusMeter()
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    with pytest.raises(MeterUnavailable, match=r"jaxprune\[zeus\]"):
        ZeusMeter()


def test_codecarbon_is_modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = types.SimpleNamespace(cpu_energy=1e-6, ram_energy=2e-6, gpu_energy=0.0)  # kWh

    class OfflineEmissionsTracker:
        def __init__(self, **options) -> None:
            assert options["save_to_file"] is False

        def start_task(self, name: str) -> None:
            self.name = name

        def stop_task(self, name: str) -> types.SimpleNamespace | None:
            assert name == self.name
            return answer

    module: Any = types.ModuleType("codecarbon")
    module.OfflineEmissionsTracker = OfflineEmissionsTracker
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    meter = CodeCarbonMeter()
    assert isinstance(meter, Meter)
    assert meter.kind == "modelled"
    assert meter.stop(meter.start()) == pytest.approx({"codecarbon:cpu": 3.6, "codecarbon:ram": 7.2})
    answer = None  # how codecarbon answers when it could not start
    with pytest.raises(MeterUnavailable, match="does not start"):
        CodeCarbonMeter()
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(MeterUnavailable, match=r"jaxprune\[codecarbon\]"):
        CodeCarbonMeter()
