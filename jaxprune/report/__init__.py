"""Reports: one object for what a comparison found, and every form it is read in.

A `Trial` is one model: a method at a sparsity with a seed, and its quality. A `Report` joins trials over seeds and
holds beside them what is left of each `Layer`, what the models cost, and where the figures come from. It prints as
tables (`terminal`), draws plots (`plots`), and writes one page that needs no network (`page`). Every figure says
whether it was measured, modelled or derived from theory, and what did not improve is said as plainly as what did
(`findings`).

Nothing here imports rich or matplotlib before it is used.
"""

from jaxprune.report.machine import environment
from jaxprune.report.notebook import show_masks
from jaxprune.report.report import Report
from jaxprune.report.trial import Layer, Trial

__all__ = ["Layer", "Report", "Trial", "environment", "show_masks"]
