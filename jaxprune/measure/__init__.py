"""What a model costs, before and after, and how each figure is known.

Everything here returns a `Figure`: a value with its unit that says whether it was *measured* (a clock, a counter, the
size of a file), *modelled* (XLA's counts, codecarbon's tables) or is *theoretical* (a formula), and prints as "not
measured" with the reason where there is no sensor. `latency` and `ratio` time calls by turns; `memory`, `live_bytes`
and `device_memory` count bytes on the device, `file_bytes` those of a file; `energy` and `record_energy` read joules;
`checkpoint_bytes`, `update_bytes` and `gradient_bytes` say what would be sent, and `gather_kept` with
`all_reduce_bytes` send it and prove it; `training_flops`, `Ledger` and `break_even` settle the account.
"""

from jaxprune.measure.adapters import CodeCarbonMeter, ZeusMeter
from jaxprune.measure.all_reduce import all_reduce_bytes, gather_kept, kept_counts, scatter_kept
from jaxprune.measure.energy import EnergyRecord, Found, energy, energy_by_domain, find_meters, record_energy
from jaxprune.measure.figure import Figure
from jaxprune.measure.files import file_bytes, read_file, write_file
from jaxprune.measure.latency import latency, ratio
from jaxprune.measure.ledger import Ledger, break_even, saving, training_flops
from jaxprune.measure.memory import device_memory, live_bytes, memory, xla_cost
from jaxprune.measure.meters import Meter, MeterUnavailable
from jaxprune.measure.nvml import NvmlMeter
from jaxprune.measure.rapl import RaplMeter
from jaxprune.measure.traffic import checkpoint_bytes, gradient_bytes, update_bytes

__all__ = [
    "CodeCarbonMeter",
    "EnergyRecord",
    "Figure",
    "Found",
    "Ledger",
    "Meter",
    "MeterUnavailable",
    "NvmlMeter",
    "RaplMeter",
    "ZeusMeter",
    "all_reduce_bytes",
    "break_even",
    "checkpoint_bytes",
    "device_memory",
    "energy",
    "energy_by_domain",
    "file_bytes",
    "find_meters",
    "gather_kept",
    "gradient_bytes",
    "kept_counts",
    "latency",
    "live_bytes",
    "memory",
    "ratio",
    "read_file",
    "record_energy",
    "saving",
    "scatter_kept",
    "training_flops",
    "update_bytes",
    "write_file",
    "xla_cost",
]
