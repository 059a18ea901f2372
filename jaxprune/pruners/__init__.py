"""Pruners: how masks evolve in training. Give one to `jp.sparsify`.

Each is a `Pruner`, a NamedTuple of pure functions; each takes the same `structure`, `allocation`, `where` and `rules`.
"""

from jaxprune.pruners._acdc import acdc
from jaxprune.pruners._exchange import rigl, set_
from jaxprune.pruners._gmp import gmp
from jaxprune.pruners._granet import granet
from jaxprune.pruners._movement import movement, soft_movement
from jaxprune.pruners._pruner import Context, MaskSettings, Pruner
from jaxprune.pruners._static import static
from jaxprune.pruners._ste import sr_ste, ste
from jaxprune.pruners._top_kast import top_kast

__all__ = [
    "Context",
    "MaskSettings",
    "Pruner",
    "acdc",
    "gmp",
    "granet",
    "movement",
    "rigl",
    "set_",
    "soft_movement",
    "sr_ste",
    "static",
    "ste",
    "top_kast",
]
