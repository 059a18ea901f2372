"""The README keeps its promises: its code runs as a reader would run it, and its commands are those of the CI."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
TIMEOUT_S = 300


def blocks(language: str) -> list[str]:
    """The fenced code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


PYTHON = blocks("python")


def test_code_blocks_run(tmp_path: Path) -> None:
    # Each block stands alone: a reader copies one, not all that came before it. One process, for JAX is imported once.
    scripts = [tmp_path / f"block_{number}.py" for number in range(len(PYTHON))]
    for script, code in zip(scripts, PYTHON, strict=True):
        script.write_text(code)
    run_each = "import runpy, sys; [runpy.run_path(script) for script in sys.argv[1:]]"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", run_each, *map(str, scripts)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_there_is_code() -> None:
    assert len(PYTHON) >= 3


def test_ci_runs_the_readmes_test_command() -> None:
    [command] = [line for block in blocks("bash") for line in block.splitlines() if "pytest" in line]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_files_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"\b(?:examples|tests)/[\w/]+\.py\b", README))
    missing = [name for name in sorted(named) if not (ROOT / name).is_file()]
    assert named and not missing, f"README.md names files that are not there: {missing}"
