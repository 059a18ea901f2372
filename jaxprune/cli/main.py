"""The entry point of the command `jaxprune`: arguments, errors and exit codes."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

OK, DIFFERENT, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 0, 1, 2, 3, 130

# The exit code of a command, and what prints its result: the code is known before anything is printed.
Outcome: TypeAlias = tuple[int, Callable[[], None]]

_EPILOG = """
exit codes: 0 all is well; 1 diff found differences; 2 bad input (arguments, files, a target that cannot be met);
3 an error of jaxprune itself, with its traceback; 130 interrupted.

CKPT is a safetensors file or an Orbax folder (of a folder of steps, the last one is taken). Nothing in it is
executed: files that may hold pickled objects (.pt, .bin, .npz, ...) are refused. Everything runs on the CPU unless
JAX_PLATFORMS says otherwise.
"""

_INSPECT = """
Prints, for each leaf and in total: zeros, bytes dense, bytes packed (theoretical: nonzero values and one bit an entry),
and the structure of the zeros: N:M along an axis, zero blocks of the last two axes, dead slices (channels, rows,
columns). A structure is claimed only where the same number of zeros at random would show it with a probability below
one in a million; dead slices that chance explains are marked (chance).
"""

_PRUNE = """
Sets the least important weights to zero and writes a new checkpoint of the same names, shapes and dtypes; zeros do not
make it smaller. By default the floating leaves with two axes or more are pruned: those below `params` if there is such
a key, else all but what is below `opt_state`, `optimizer` or `opt` (a key ends at / or at a dot). Embeddings are among
them; leave them out as in --where '(?!.*embed).*kernel'.
"""

_DIFF = """
Compares values, dtypes and shapes of leaves of the same name, and counts zeros that came (lost) and went (grown). NaN
equals NaN, -0.0 equals 0.0. Exit code 1 if anything differs or is missing.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments; None takes those of the process.

    Returns:
      The exit code: 0 all is well, 1 `diff` found differences, 2 bad input, 3 an error of jaxprune, 130 interrupted.

    Example:
      >>> import tempfile, jax.numpy as jnp, jaxprune as jp
      >>> folder = tempfile.mkdtemp()
      >>> jp.storage.save(folder + "/a", {"w": jnp.ones((4, 4))})
      >>> main(["diff", folder + "/a", folder + "/a", "--json", "--where", "w"])
      {
      ...
      0
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse prints by itself
        return stop.code if isinstance(stop.code, int) else BAD_INPUT
    if argv is None and "JAX_PLATFORMS" not in os.environ:
        import jax

        # The files are the work: a device would only lose memory to it, perhaps that of a training run.
        jax.config.update("jax_platforms", "cpu")
    try:
        code, show = arguments.run(arguments)
        try:
            show()
            sys.stdout.flush()
        except BrokenPipeError:  # as in `jaxprune inspect CKPT | head`; the code is known all the same
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"jaxprune {arguments.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        print(f"jaxprune {arguments.command}: this is an error of jaxprune; please report it.", file=sys.stderr)
        return INTERNAL_ERROR


def _parser() -> argparse.ArgumentParser:
    import jaxprune

    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="jaxprune", description="Looks at, prunes and compares checkpoints.", epilog=_EPILOG, formatter_class=plain
    )
    parser.add_argument("--version", action="version", version=f"jaxprune {jaxprune.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, brief: str, text: str) -> argparse.ArgumentParser:
        part = commands.add_parser(name, help=brief, description=text, epilog=_EPILOG, formatter_class=plain)
        part.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
        part.add_argument("--quiet", action="store_true", help="no progress bar on standard error")
        part.add_argument(
            "--where",
            action="append",
            metavar="REGEX",
            help="only leaves of which a regular expression matches the whole path; may be given several times",
        )
        return part

    inspect = command("inspect", "sparsity, bytes and structure of the zeros", _INSPECT)
    inspect.add_argument("checkpoint", metavar="CKPT")
    inspect.set_defaults(run=_inspect)

    prune = command("prune", "set weights to zero and write a new checkpoint", _PRUNE)
    prune.add_argument("checkpoint", metavar="CKPT")
    prune.add_argument("--out", required=True, help="a name that ends in .safetensors, or that of an Orbax folder")
    prune.add_argument("--sparsity", type=float, help="fraction of zeros, 0 <= s < 1; not needed with N:M")
    prune.add_argument(
        "--structure",
        default="unstructured",
        help="unstructured (default), N:M such as 2:4 (2 kept of every 4), block:RxC such as block:32x32 (tiles of the "
        "last two axes), channel",
    )
    prune.add_argument(
        "--axis",
        type=int,
        help="of N:M the axis that is summed over, of channel that of the channels; default 1 and 0 for safetensors "
        "files with `format: pt` (PyTorch: out, in, ...), else -2 and -1 (Flax: ..., in, out)",
    )
    prune.add_argument("--score", default="magnitude", help="magnitude (default), lamp, random")
    prune.add_argument(
        "--allocation", default="uniform", help="uniform (default), erk, global, global-normalized, lamp; not for N:M"
    )
    prune.add_argument("--seed", type=int, default=0, help="of random scores; default 0")
    prune.add_argument("--overwrite", action="store_true", help="replace a checkpoint at OUT")
    prune.set_defaults(run=_prune)

    diff = command("diff", "which leaves of two checkpoints differ, and how", _DIFF)
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")
    diff.add_argument("--all", action="store_true", help="list the leaves that are the same, too")
    diff.set_defaults(run=_diff)
    return parser


def _inspect(arguments: argparse.Namespace) -> Outcome:
    from jaxprune.cli import inspect

    found = inspect.inspect_checkpoint(arguments.checkpoint, where=arguments.where, quiet=arguments.quiet)
    return OK, _shown(arguments, found)


def _prune(arguments: argparse.Namespace) -> Outcome:
    from jaxprune.cli import prune

    made = prune.prune_checkpoint(
        arguments.checkpoint,
        arguments.out,
        sparsity=arguments.sparsity,
        structure=arguments.structure,
        axis=arguments.axis,
        score=arguments.score,
        allocation=arguments.allocation,
        where=arguments.where,
        seed=arguments.seed,
        overwrite=arguments.overwrite,
        quiet=arguments.quiet,
    )
    return OK, _shown(arguments, made)


def _diff(arguments: argparse.Namespace) -> Outcome:
    from jaxprune.cli import diff

    found = diff.diff_checkpoints(arguments.a, arguments.b, where=arguments.where, quiet=arguments.quiet)
    return OK if found.same else DIFFERENT, _shown(arguments, found, everything=arguments.all)


def _shown(arguments: argparse.Namespace, found: Any, **options: Any) -> Callable[[], None]:
    """Prints a result as its table, or as JSON."""
    from jaxprune.cli import show

    return lambda: show.print_json(found.to_dict()) if arguments.json else found.print(**options)
