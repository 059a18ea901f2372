"""Calibration: what the inputs of each layer look like on real data.

`capture` makes of a function one that also returns statistics of what its parameters are multiplied with; `calibrate`
sums them over batches, and `capture_cross` compares two versions of a model. The statistics themselves are `jp.stats`.
"""

from jaxprune.calibration import statistics
from jaxprune.calibration.accumulate import calibrate
from jaxprune.calibration.capture import Statistics, capture
from jaxprune.calibration.cross import capture_cross

__all__ = ["Statistics", "calibrate", "capture", "capture_cross", "statistics"]
