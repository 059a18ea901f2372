"""The shape of the package: one-way floors, short files, a light import, an API that is written down."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxprune as jp

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxprune"

# A module, or a folder with all that is in it, imports only from its own floor or below.
FLOORS = {
    "trees": 0,
    "_versions": 0,
    "_sharding": 1,
    "_conditional": 1,
    "_counts": 1,
    "_dtypes": 1,
    "masks": 1,
    "selection": 1,
    "structures": 1,
    "schedules": 1,
    "allocation": 1,
    "scores": 1,
    "compute": 1,
    "summary": 1,
    "pruners": 2,
    "states": 2,
    "lottery": 3,
    "tracing": 2,
    "transforms": 3,
    "calibration": 3,
    "shrinking": 3,
    "measure": 3,
    "posttraining": 4,
    "frameworks": 4,
    "storage": 4,
    "report": 4,
    "pipeline": 4,
    "patterns": 1,
    "cli": 5,
    "__main__": 5,
    "": 5,  # jaxprune/__init__.py
}
# Floors 0 and 1 are array mathematics; nothing but these and the standard library comes in there.
ARRAY_LIBRARIES = {"jax", "numpy"}
MAX_LINES = 400

MODULES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]


def module_name(path: Path) -> str:
    """`jaxprune.scores.magnitude` of `.../jaxprune/scores/magnitude.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def floor_of(module: str) -> int:
    """The floor of a module of the package; a room that the map lacks fails."""
    _, _, inner = module.partition(".")
    room = inner.split(".")[0]
    if room not in FLOORS:
        pytest.fail(f"jaxprune/{room} is not in FLOORS of tests/test_layout.py: add it, with its floor (design.md, 4)")
    return FLOORS[room]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module that a file imports, inside functions as well."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                ancestors = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*ancestors, *([base] if base else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield node.lineno, submodule if submodule in NAMES else base


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_come_from_the_same_floor_or_below(path: Path) -> None:
    floor = floor_of(module_name(path))
    climbs = [
        f"{path.relative_to(ROOT)}:{line} (floor {floor}) imports {name} (floor {floor_of(name)})"
        for line, name in imports(path)
        if name.split(".")[0] == "jaxprune" and floor_of(name) > floor
    ]
    assert not climbs, "\n".join(climbs)


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_array_mathematics_imports_only_arrays(path: Path) -> None:
    allowed = {"jaxprune", *ARRAY_LIBRARIES, *sys.stdlib_module_names}
    foreign = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(path)
        if floor_of(module_name(path)) <= 1 and name.split(".")[0] not in allowed
    ]
    assert not foreign, "\n".join(foreign)


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines; which two ideas live in it?"


def test_type_information_is_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()


IMPORT_PROBE = """
import json, sys
import jax, optax
before = set(sys.modules)
import jaxprune
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def modules_that_import_loads() -> set[str]:
    """What `import jaxprune` loads in a fresh interpreter, beyond jax and optax."""
    # There is no such platform, so an import that computes, and so waits for an accelerator, fails.
    environment = {**os.environ, "JAX_PLATFORMS": "absent"}
    command = [sys.executable, "-W", "error", "-c", IMPORT_PROBE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_import_is_light() -> None:
    """Light by what it loads; `tests/benchmarks/import_time.py` takes the seconds."""
    loaded = modules_that_import_loads()
    assert "jaxprune.compute" in loaded
    foreign = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names - {"jaxprune", "jax", "optax"}
    assert not foreign, f"import jaxprune loads {sorted(foreign)}"
    early = {f"jaxprune.{room}" for room in ("measure", "pipeline", "report", "cli")} & loaded
    assert not early, f"{sorted(early)} should be imported when they are first used"


def documented_names() -> list[str]:
    """The first column of the README's API table, without `jp.`."""
    readme = (ROOT / "README.md").read_text()
    match = re.search(r"<!-- api -->(.*?)<!-- /api -->", readme, re.DOTALL)
    assert match, "README.md has no table between <!-- api --> and <!-- /api -->"
    return re.findall(r"^\| *`(?:jp\.)?(\w+)", match[1], re.MULTILINE)


def test_readme_lists_the_api() -> None:
    names = documented_names()
    assert sorted(names) == sorted(set(names)), "the README's API table lists a name twice"
    assert set(names) == set(jp.__all__)


def test_api_names_are_unique_and_there() -> None:
    assert sorted(jp.__all__) == sorted(set(jp.__all__))
    missing = [name for name in jp.__all__ if not hasattr(jp, name)]
    assert not missing, f"jaxprune.__all__ lists what is not there: {missing}"


@pytest.mark.parametrize("name", jp.__all__)
def test_public_names_have_a_docstring(name: str) -> None:
    value = getattr(jp, name)
    text = inspect.getdoc(value) or ""
    # NamedTuples and dataclasses write `Name(field, ...)` themselves when there is no docstring.
    assert text.strip(), f"jaxprune.{name} has no docstring"
    assert not text.startswith(f"{name}("), f"jaxprune.{name} has only a generated docstring"
