"""Calibration: what the inputs of each layer look like on real data.

`capture` makes of a function one that also returns statistics of what its parameters are multiplied with; `calibrate`
sums them over batches. The statistics themselves are `jp.stats`.
"""

from jaxprune.calibration import statistics
from jaxprune.calibration.accumulate import calibrate
from jaxprune.calibration.capture import Statistics, capture

__all__ = ["Statistics", "calibrate", "capture", "statistics"]
