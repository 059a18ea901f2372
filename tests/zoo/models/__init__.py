"""Small models, written in every way there is to write one, by name. Each is built when it is first asked for."""

import functools
import importlib.util
from collections.abc import Callable

from tests.zoo.models import equinox_models, linen, nnx_models, plain_language, plain_programs, plain_vision
from tests.zoo.models._model import ZooModel

BUILDERS = (
    *plain_vision.BUILDERS,
    *plain_language.BUILDERS,
    *plain_programs.BUILDERS,
    *linen.BUILDERS,
    *nnx_models.BUILDERS,
    *equinox_models.BUILDERS,
)
if importlib.util.find_spec("haiku"):
    from tests.zoo.models import haiku_models

    BUILDERS += haiku_models.BUILDERS

ZOO: dict[str, Callable[[], ZooModel]] = {builder.__name__: functools.cache(builder) for builder in BUILDERS}
