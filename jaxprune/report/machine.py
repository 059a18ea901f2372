"""Where figures come from: versions and the machine."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """What somebody needs to know to repeat the figures of a report.

    No name of a user, a host or a folder is in it.

    Returns:
      Versions, devices, processor, cores, operating system and the date, as JSON can hold them.

    Example:
      >>> environment()["jax"] == jax.__version__
      True
    """
    devices = jax.devices()
    kinds = dict.fromkeys(device.device_kind for device in devices)
    return {
        "jaxprune": _version("jaxprune"),
        "jax": jax.__version__,
        "jaxlib": _version("jaxlib"),
        "flax": _version("flax"),
        "optax": _version("optax"),
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "devices": f"{len(devices)} x {', '.join(kinds)}",
        "processor": _processor(),
        "cores": _cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cores() -> int:
    """Those that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """The model of the processor; `platform.processor()` is empty on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
