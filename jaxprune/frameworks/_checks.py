"""The smaller module is run once, before it is handed out: it must fit, and compute what the cut trace computes.

What it computes is compared where that can be told: a module that draws random numbers gets a warning that only shapes
were compared. Modules without arrays (`jax.eval_shape`) are compared by shape.
"""

import contextlib
import importlib.util
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.shrinking import Plan, shrunk_function
from jaxprune.tracing import Model
from jaxprune.tracing.graph import Literal, Node, build
from jaxprune.tracing.means import find_means
from jaxprune.trees import PyTree

NameOf: TypeAlias = Callable[[Sequence[Any]], str | None]
"""From the objects whose methods were running, outermost first, to the module that the innermost is, in words."""

_LIBRARIES = ("jax", "flax", "equinox", "numpy", "einops", "opt_einsum", "jaxtyping", "jaxprune")
_RANDOM = {"random_bits", "rng_uniform", "rng_bit_generator", "random_gamma"}
# The largest difference from the replay, as a fraction of the largest output. Both are the same sums; in half precision
# they may be rounded at other places.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-2


def check(
    function: Callable[..., Any],
    model: Model,
    plan: Plan,
    params: PyTree,
    reference: PyTree,
    remedy: str,
    name_of: NameOf,
) -> None:
    """Runs a resized module against the replay on made-up arguments.

    Values are compared where the parameters are arrays, shapes in any case. Where there are arrays and values cannot be
    compared, a warning says why.

    Args:
      function: the smaller module as a function of `params` and the arguments.
      model: the traced model.
      plan: which indices stay.
      params: what `function` takes.
      reference: the smaller parameters for the replay.
      remedy: what to do about a misfit.
      name_of: names the module that an error comes from.

    Raises:
      ValueError: the module does not fit, or computes something else.
    """
    replay = shrunk_function(model, plan, norm="resize")
    expected = jax.eval_shape(replay, reference, *model.args)
    with named_misfits(remedy, name_of):
        found = jax.eval_shape(function, params, *model.args)
    if jax.tree.structure(found) != jax.tree.structure(expected):
        raise ValueError(
            f"the resized module gives {jax.tree.structure(found)}, the traced function "
            f"{jax.tree.structure(expected)}. Give `call`, a function (module, *args) that does what was traced."
        )
    for (path, mine), theirs in zip(trees.leaves_with_paths(found), jax.tree.leaves(expected), strict=True):
        if mine.shape != theirs.shape:
            raise ValueError(
                f"the output {path!r} of the resized module has shape {mine.shape}, where the cut trace has "
                f"{theirs.shape}. {remedy}"
            )
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        return
    obstacle = _obstacle(model, reference)
    if obstacle:
        warnings.warn(f"of the resized module only shapes were compared, because {obstacle}.", stacklevel=3)
    else:
        _compare(function, replay, model, params, reference)


def _obstacle(model: Model, reference: PyTree) -> str | None:
    """Why the values of a module that has arrays cannot be compared, and what to do; None if they can."""
    if any(node.name in _RANDOM for node in model.program.graph.everything()):
        return "the traced function draws random numbers; trace it in evaluation mode"
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.extended) for leaf in jax.tree.leaves(model.args)):
        return "the traced function takes random keys; trace it without"
    pairs = zip(model.paths, jax.tree.leaves(reference), strict=True)
    missing = [path for path, leaf in pairs if isinstance(leaf, jax.ShapeDtypeStruct)]
    if missing:
        return (
            f"{trees.list_paths(missing)} of the traced parameters are not in the module; trace the module's own "
            "parameters, or compare with jaxprune.shrunk_function yourself"
        )
    return None


def _compare(
    function: Callable[..., Any],
    replay: Callable[..., Any],
    model: Model,
    params: PyTree,
    reference: PyTree,
) -> None:
    args = jax.tree.map(_made_up, model.args)
    # The default precision of accelerators would need a tolerance that hides what is looked for.
    with jax.default_matmul_precision("highest"):
        found = jax.tree.leaves(jax.jit(lambda *inputs: function(*inputs))(params, *args))
        expected = jax.tree.leaves(jax.jit(replay)(reference, *args))
    for mine, theirs in zip(found, expected, strict=True):
        if not jnp.issubdtype(theirs.dtype, jnp.floating) or not theirs.size:
            continue
        a, b = (np.asarray(array.astype(jnp.float32)) for array in (mine, theirs))
        error = float(np.max(np.abs(a - b))) / (float(np.max(np.abs(b))) or 1.0)
        tolerance = _TOLERANCE if jnp.finfo(theirs.dtype).bits >= 32 else _HALF_TOLERANCE
        if np.isfinite(b).all() and not error <= tolerance:
            raise ValueError(
                f"the resized module fits, but departs from the cut trace by {error:.1e} of the largest output: "
                "it computes with a number that depends on a size which the plan has changed, such as a factor "
                f"1/sqrt(head size) written by hand{_changed_numbers(function, model, params)}. Make that number an "
                "attribute that keeps its value, or use jaxprune.shrunk_function, which needs no change of the module. "
                "If the smaller model shall compute with the new number, pass check=False."
            )


def _changed_numbers(function: Callable[..., Any], model: Model, params: PyTree) -> str:
    """`; numbers have changed at model.py:12`: where the trace of the smaller module holds other scalars."""
    small = list(build(jax.make_jaxpr(function)(params, *model.args)).graph.everything())
    full = list(model.program.graph.everything())
    if [node.name for node in small] != [node.name for node in full]:
        return ""
    means = find_means(model.program)
    lines = dict.fromkeys(
        new.source for old, new in zip(full, small, strict=True) if old not in means and _scalars(old) != _scalars(new)
    )
    return f"; numbers have changed at {', '.join(filter(None, lines))}" if lines else ""


def _scalars(node: Node) -> list[Any]:
    return [operand.value for operand in node.inputs if isinstance(operand, Literal)]


def _made_up(leaf: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(np.random.default_rng(0).normal(size=leaf.shape), leaf.dtype)
    return jnp.ones(leaf.shape, bool) if leaf.dtype == bool else jnp.zeros(leaf.shape, leaf.dtype)


@contextlib.contextmanager
def named_misfits(remedy: str, name_of: NameOf) -> Iterator[None]:
    """Turns an error inside into a ValueError that names the module, the line and the remedy."""
    try:
        yield
    except Exception as error:
        raise ValueError(describe(error, remedy, name_of)) from error


def describe(error: BaseException, remedy: str, name_of: NameOf) -> str:
    """The message for an error of a module that does not fit its smaller parameters."""
    name = name_of([frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)])
    first = str(error).strip().split("\n")[0]
    return (
        f"{name or 'the module'} does not fit its smaller parameters{_place(error)}: {first.rstrip('.')}. "
        f"A size is written there that the plan has changed. {remedy}"
    )


def _place(error: BaseException) -> str:
    """`, at model.py:12 (line of code)`: the innermost line that belongs to no library."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _in_library(frame.filename)]
    if not own:
        return ""
    code = f" (`{own[-1].line}`)" if own[-1].line else ""
    return f", at {own[-1].filename}:{own[-1].lineno}{code}"


def _in_library(filename: str) -> bool:
    return any(Path(filename).is_relative_to(folder) for folder in _library_folders())


def _library_folders() -> list[Path]:
    specs = [importlib.util.find_spec(name) for name in _LIBRARIES]
    folders = [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin is not None]
    paths = sysconfig.get_paths()
    standard = [Path(paths["stdlib"]), Path(paths["platstdlib"])]
    # Packages of users may be installed beside the libraries, in a folder inside that of the standard library.
    return [*folders, *(folder / name for folder in standard for name in ("contextlib.py", "functools.py"))]
