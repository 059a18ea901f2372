"""What the command line prints: tables to standard output, progress to standard error."""

import contextlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Where output is not a terminal, rows are not cut to 80 columns.
_FILE_WIDTH = 300


def printable(text: str) -> str:
    r"""A name from a file, without characters that a terminal would act on.

    Example:
      >>> printable("layer\x1b[2J")
      'layer\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(value: Any) -> None:
    """One JSON document to standard output; NaN and infinities, which JSON has not, become null."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def print_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], totals: Iterable[Sequence[str]]
) -> None:
    """A table whose first column is a name; numbers, the other columns but the last, are set to the right.

    Args:
      title: a line above.
      header: the names of the columns.
      rows: cells, as many as there are columns.
      totals: rows below a line.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows, totals = list(rows), list(totals)
    table = Table(title=Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAD)
    for column, name in enumerate(header):
        right = 0 < column < len(header) - 1
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    table.add_section()
    for row in totals:
        table.add_row(*(Text(printable(cell), style="bold") for cell in row))
    target, wide = console(), Console(width=_FILE_WIDTH)
    # A terminal that is too narrow breaks lines by itself; names folded to a few letters would be worse.
    target.width = max(target.width, wide.measure(table).maximum)
    target.print(table)


def console() -> Any:
    """A rich console on standard output, which raises BrokenPipeError where the reader has gone."""
    from rich.console import Console

    class Loud(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process with 1, which here means that checkpoints differ

    return Loud(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)


@contextlib.contextmanager
def progress(label: str, total: int, *, quiet: bool) -> Iterator[Any]:
    """A bar over bytes on standard error, where that is a terminal.

    Args:
      label: what is being done.
      total: how many bytes in all.
      quiet: no bar.

    Yields:
      A function that takes how many bytes more are done.
    """
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    target = Console(stderr=True)
    with rich_progress.Progress(
        *columns, console=target, transient=True, disable=quiet or not target.is_terminal
    ) as bars:
        task = bars.add_task(label, total=total)
        yield lambda done: bars.advance(task, done)


def percent(fraction: float) -> str:
    """A fraction as a percentage; what is not quite 0 or 100 % does not look like it.

    Example:
      >>> percent(0.5), percent(1e-9), percent(1 - 1e-9)
      ('50.00 %', '< 0.01 %', '> 99.99 %')
    """
    if 0 < fraction < 5e-5:
        return "< 0.01 %"
    if 1 - 5e-5 < fraction < 1:
        return "> 99.99 %"
    return f"{100 * fraction:.2f} %"


def shape_text(shape: Sequence[int]) -> str:
    """A shape as in 3x3x64x64.

    Example:
      >>> shape_text((3, 4)), shape_text(())
      ('3x4', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
