"""Allocation: how a sparsity is shared between the parameters.

An allocation turns the unit scores of all parameters into a choice of units that meets one budget. `uniform` and
`erk` give each parameter a density from its shape; `global_` and `lamp` compare scores between parameters. Change
an option with `dataclasses.replace(jp.allocation.erk, minimum_density=0.01)`.
"""

from jaxprune.allocation._explicit import explicit
from jaxprune.allocation._global import Global, global_, global_normalized, lamp
from jaxprune.allocation._layerwise import Layerwise, erk, uniform
from jaxprune.allocation._units import Allocation, Units

__all__ = [
    "Allocation",
    "Global",
    "Layerwise",
    "Units",
    "erk",
    "explicit",
    "global_",
    "global_normalized",
    "lamp",
    "uniform",
]
