"""The examples in the docstrings run, under the strict settings of `conftest.py`, and every public function has one."""

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import jaxprune as jp

ROOT = Path(__file__).resolve().parent.parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FINDER = doctest.DocTestFinder(exclude_empty=True)


def module_names() -> list[str]:
    """Every module of the package."""
    paths = sorted((ROOT / "jaxprune").rglob("*.py"))
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    return [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]


def examples(name: str) -> list[doctest.DocTest]:
    """Every docstring of a module that holds an example."""
    return [test for test in FINDER.find(importlib.import_module(name)) if test.examples]


def public_objects() -> dict[str, Any]:
    """Functions and classes of `jp.__all__`, and functions of the namespaces in it, by their public name."""
    found = {}
    for name in jp.__all__:
        value = getattr(jp, name)
        if isinstance(value, ModuleType):
            inside = {f"{name}.{inner}": getattr(value, inner) for inner in value.__all__}
            found |= {inner: value for inner, value in inside.items() if not inspect.isclass(value)}
        else:
            found[name] = value
    # Instances and type aliases have no name of their own; the docstring of their class speaks for them.
    return {name: value for name, value in found.items() if callable(value) and hasattr(value, "__qualname__")}


MODULES = module_names()
PUBLIC = public_objects()


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in examples(name):
        runner.run(test)
    results = runner.summarize(verbose=False)
    assert results.failed == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_have_an_example_that_runs(name: str) -> None:
    value = inspect.unwrap(PUBLIC[name])
    run = {test.name for test in examples(value.__module__)}
    assert f"{value.__module__}.{value.__qualname__}" in run, f"jaxprune.{name} needs an example (>>>) in its docstring"
