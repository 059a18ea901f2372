"""Settings for every test: CPU with 8 devices, strict promotion, no windows.

They must be made before JAX builds its backend, so this file is all there is to it. Doctests of the package run under
the same settings, because `tests/test_docstrings.py` runs them. Optax's Adam breaks strict dtype promotion for
parameters that are not float32: wrap such a call in `with jax.numpy_dtype_promotion("standard")`.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# Most of the time goes into compiling small functions once: leave out what only makes their results faster. The older
# emitters of fusions compile in half the time, and threads cost small programs more than they save, in compiling and in
# running. Flags of your own come last and win, so that the tests also run as users compile:
# XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true --xla_cpu_multi_thread_eigen=true".
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_multi_thread_eigen=false",
        os.environ.get("XLA_FLAGS", ""),
    ]
).strip()

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file() -> Iterator[None]:
    """Forgets what was compiled for a file when its tests are done.

    JAX keeps the last 2,048 programs that it lowered, each in an MLIR context, and every new context walks through all
    that live: that took a third of the time of all tests. Few programs of one file are those of another.
    """
    yield
    jax.clear_caches()
