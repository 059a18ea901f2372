"""The README keeps its promises: its code runs as a reader would run it, and its commands are those of the CI."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
TIMEOUT_S = 120


def blocks(language: str) -> list[str]:
    """The fenced code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


PYTHON = blocks("python")


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_code_block_runs(number: int, tmp_path: Path) -> None:
    # Each block stands alone: a reader copies one, not all that came before it.
    script = tmp_path / "block.py"
    script.write_text(PYTHON[number])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, f"{PYTHON[number]}\n{done.stdout}\n{done.stderr}"


def test_there_is_code() -> None:
    assert len(PYTHON) >= 3


def test_ci_runs_the_readmes_test_command() -> None:
    [command] = [line for block in blocks("bash") for line in block.splitlines() if "pytest" in line]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_files_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"\b(?:examples|tests)/[\w/]+\.py\b", README))
    missing = [name for name in sorted(named) if not (ROOT / name).is_file()]
    assert named and not missing, f"README.md names files that are not there: {missing}"
