"""Layer-wise pruning: parity with the authors' SparseGPT, time, and the error of every method.

Run: python tests/benchmarks/posttraining.py [--sparsegpt CHECKOUT] [--repetitions 5] [--tables parity speed error]

Without a checkout of https://github.com/IST-DASLab/sparsegpt and PyTorch our own figures are printed alone.
"""

import argparse
import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))
# Threads that wait by spinning (OpenBLAS factorises for JAX, OpenMP works for PyTorch) slow either side down several
# times where anything else runs. It must be said before the libraries are loaded.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ.get("OPENBLAS_NUM_THREADS", "1")
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

import jax
import jax.numpy as jnp
import numpy as np
from timing import medians

import jaxprune as jp
from jaxprune.posttraining import (
    Method,
    admm,
    alps,
    magnitude,
    refit,
    repaired,
    ria,
    sparsegpt,
    sparsegpt_score,
    sweep,
    wanda,
)
from tests.posttraining.layers import layer_error, make_layer

peer = None
if importlib.util.find_spec("torch"):
    import posttraining_peer as peer

SHAPES = [(1024, 1024), (2048, 2048), (4096, 1024)]
STRUCTURES = {"50 %": (0.5, jp.Unstructured(), (0, 0)), "2:4": (None, jp.NM(2, 4), (2, 4))}
METHODS: dict[str, Method] = {
    "magnitude": magnitude(),
    "ria": ria(),
    "wanda": wanda(),
    "wanda + sweep": repaired(wanda(), sweep()),
    "sparsegpt": sparsegpt(),
    "score + refit": repaired(sparsegpt_score(), refit()),
    "wanda + refit": repaired(wanda(), refit()),
    "sparsegpt + refit": repaired(sparsegpt(), refit()),
    "admm": admm(),
    "alps": alps(),
}


@functools.cache
def layer(out: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and the Gram matrix of correlated inputs with outliers."""
    weights, inputs = make_layer(out, features, 2 * features)
    return weights, inputs.T @ inputs


def pruner(method: Method, weights: Any, gram: Any, sparsity: float | None, structure: Any) -> Callable[[], Any]:
    run = jax.jit(method, static_argnums=(2, 3))
    return functools.partial(run, jnp.asarray(weights), jnp.asarray(gram), sparsity, structure)


def compare(shape: tuple[int, int], name: str, module: Any) -> None:
    """Prints how far our weights are from theirs, at the same count."""
    weights, gram = layer(*shape)
    sparsity, structure, pattern = STRUCTURES[name]
    if sparsity is not None:
        sparsity += 1 / (shape[0] * 128)  # theirs prunes one weight more a block
    theirs = peer.sparsegpt(module, weights, gram, STRUCTURES[name][0] or 0.0, pattern)
    ours, mask = (np.asarray(a) for a in pruner(sparsegpt(), weights, gram, sparsity, structure)()[:2])
    same = mask == (theirs != 0)
    rows = same.all(1)
    relative = np.linalg.norm(ours[rows] - theirs[rows]) / np.linalg.norm(theirs[rows])
    errors = layer_error(weights, ours, gram), layer_error(weights, theirs, gram)
    print(
        f"{shape[0]:5d} x {shape[1]:4d}  {name:6s}{same.mean():12.4%}{rows.mean():11.2%}{relative:13.1e}"
        f"{errors[0]:11.6f}{errors[1]:11.6f}",
        flush=True,
    )


def time_methods(shape: tuple[int, int], name: str, module: Any, repetitions: int) -> None:
    """Prints milliseconds, and how many times longer than our SparseGPT."""
    weights, gram = layer(*shape)
    sparsity, structure, pattern = STRUCTURES[name]
    candidates = {
        "sparsegpt": pruner(sparsegpt(), weights, gram, sparsity, structure),
        "wanda": pruner(wanda(), weights, gram, sparsity, structure),
    }
    if module:
        candidates["original"] = functools.partial(peer.sparsegpt, module, weights, gram, sparsity or 0.0, pattern)
    times = medians(candidates, repetitions)
    if shape == SHAPES[0]:
        slow = {"refit": repaired(wanda(), refit()), "admm": admm(), "alps": alps()}
        times |= medians({key: pruner(each, weights, gram, sparsity, structure) for key, each in slow.items()}, 1)
    ours = times["sparsegpt"]
    columns = ["sparsegpt", "original", "wanda", "refit", "admm", "alps"]
    cells = [f"{times[c] * 1e3:9.0f}{times[c] / ours:7.2f}" if c in times else f"{'-':>16s}" for c in columns]
    print(f"{shape[0]:5d} x {shape[1]:4d}  {name:6s}" + "".join(cells), flush=True)


def main() -> None:
    """Prints three tables, all measured in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsegpt", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tables", nargs="*", default=["parity", "speed", "error"])
    arguments = parser.parse_args()
    module = peer.load_sparsegpt(arguments.sparsegpt) if peer and arguments.sparsegpt else None
    against = f"PyTorch {peer.torch.__version__}" if module and peer else "no PyTorch"
    print(f"JAX {jax.__version__} on {jax.devices()[0].platform}, {against}, {os.cpu_count()} cores; measured")
    if "parity" in arguments.tables and module:
        print("\nOurs against the original, the same Gram matrix and counts; weights over rows whose masks agree")
        print(f"{'':20s}{'same mask':>11s}{'same rows':>11s}{'weights rel.':>13s}{'our error':>11s}{'theirs':>11s}")
        for shape in [(256, 512), *SHAPES]:
            for name in STRUCTURES:
                compare(shape, name, module)
    if "speed" in arguments.tables:
        print(f"\nMilliseconds, medians of {arguments.repetitions} in turn (last three: one), and times our SparseGPT")
        print(
            f"{'':20s}"
            + "".join(f"{c:>16s}" for c in ("sparsegpt", "original", "wanda", "wanda+refit", "admm", "alps"))
        )
        for shape in SHAPES:
            for name in STRUCTURES:
                time_methods(shape, name, module, arguments.repetitions)
    if "error" in arguments.tables:
        cases = [(0.5, jp.Unstructured()), (0.7, jp.Unstructured()), (0.8, jp.Unstructured()), (None, jp.NM(2, 4))]
        cases.append((0.5, jp.Block((8, 8))))
        weights, gram = layer(512, 512)
        print("\nRelative error of the output of a 512 x 512 layer")
        print(f"{'':20s}" + "".join(f"{c:>9s}" for c in ("50 %", "70 %", "80 %", "2:4", "50 % 8x8")))
        for name, method in METHODS.items():
            errors = [layer_error(weights, pruner(method, weights, gram, *case)()[0], gram) for case in cases]
            print(f"{name:20s}" + "".join(f"{error:9.4f}" for error in errors), flush=True)


if __name__ == "__main__":
    main()
