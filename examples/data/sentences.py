"""English sentences from the documentation of the Python standard library: docstrings, split by file.

A docstring's first paragraph is a short summary, and what follows explains it. So pairs of both are a retrieval task
with true answers and without any labelling: find the explanation that belongs to a summary. Nothing is imported, files
are only parsed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from examples.data import text

Item = TypeVar("Item")
_SPACE = re.compile(r"\s+")
_CALIBRATION_OF_256 = 48  # of 256 training files, as many are parsed: parsing all takes ten seconds
_PROSE = re.compile(r"[A-Z][a-z' ]*[a-z].{12,}")  # begins as a sentence does; no call signature, no table


class Pair(NamedTuple):
    """A summary and the text that explains it."""

    summary: str
    explanation: str


def calibration_sentences(n: int) -> list[str]:
    """Sentences from some of the training files of `text.split_of`, spread over these.

    Args:
      n: how many.

    Raises:
      ValueError: if there are fewer.
    """
    return _spread([pair.summary for pair in _pairs()[0]], n)


def held_out_sentences(n: int) -> list[str]:
    """As `calibration_sentences`, from files that those never see."""
    return _spread([pair.summary for pair in _pairs()[1]], n)


def held_out_pairs(n: int) -> list[Pair]:
    """Pairs from the held-out files that have an explanation; see `calibration_sentences`."""
    return _spread([pair for pair in _pairs()[1] if pair.explanation], n)


def docstring_pairs(source: str) -> Iterator[Pair]:
    """Yields summary and explanation (empty where there is none) of the docstrings of a Python file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files hold invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            continue
        summary, _, rest = inspect.cleandoc(ast.get_docstring(node) or "").partition("\n\n")
        summary = _SPACE.sub(" ", summary).strip()
        explanation = _SPACE.sub(" ", rest.split("\n\n")[0]).strip()
        if _PROSE.fullmatch(summary):
            yield Pair(summary, explanation if _PROSE.fullmatch(explanation) else "")


@functools.cache
def _pairs() -> tuple[list[Pair], list[Pair]]:
    """All pairs of the training files and of the held-out files, each summary and explanation once."""
    groups: tuple[list[Pair], list[Pair]] = ([], [])
    seen: set[str] = set()
    root = Path(sysconfig.get_path("stdlib"))
    for name, source in text.read_files(root, text.LEFT_OUT):
        held_out = text.split_of(name) != "train"
        if not held_out and hashlib.sha256(name.encode()).digest()[1] >= _CALIBRATION_OF_256:
            continue
        for pair in docstring_pairs(source):
            if seen.isdisjoint(pair):
                seen.update(filter(None, pair))
                groups[held_out].append(pair)
    return groups


def _spread(items: list[Item], n: int) -> list[Item]:
    """Takes `n` items, spread evenly over all."""
    if not 1 <= n <= len(items):
        raise ValueError(f"n is {n}; the standard library gives 1 to {len(items)}")
    return [items[i * len(items) // n] for i in range(n)]
