"""The notebooks of colab/ run from top to bottom on eight CPU devices, and are kept without their outputs."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "colab"
NAMES = ("one_shot_llm", "quickstart", "shrink_any_model", "tpu_training", "write_your_own_pruner")
OPEN = "https://colab.research.google.com/github/jaxprune/jaxprune/blob/main/colab/{}.ipynb"
TIMEOUT_S = 300  # of one cell, on a busy machine

every_notebook = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def sources(name: str, kind: str = "code") -> list[str]:
    return [cell.source for cell in read(name).cells if cell.cell_type == kind]


def texts(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def test_every_notebook_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@every_notebook
def test_runs_top_to_bottom(name: str, tmp_path: Path) -> None:
    # The kernel inherits the settings that tests/conftest.py made for compilation; devices it must be told of.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "JAXPRUNE_NOTEBOOK_FAST": "1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    environment.pop("MPLBACKEND", None)  # the kernel has one of its own
    notebook = read(name)
    client = NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not code[0].outputs, "the first cell is to do nothing where jaxprune is installed"
    assert "runs on a CPU: 8 x cpu" in texts(code[1])


@every_notebook
def test_is_kept_without_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    assert notebook.metadata.kernelspec.name == "python3"
    # As nbformat writes it, so that a change of one line is a diff of one line.
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert text == nbformat.writes(notebook, indent=1) + "\n"


@every_notebook
def test_opens_in_colab_and_says_what_masks_do_not_do(name: str) -> None:
    prose = sources(name, "markdown")
    assert f"]({OPEN.format(name)})" in prose[0]
    assert "What masks do not do" in prose[1]


@every_notebook
def test_needs_nothing_but_what_is_installed(name: str) -> None:
    # In Colab there is the package, and not the checkout around it.
    code = "\n".join(sources(name))
    assert "import examples" not in code and "from examples" not in code
    assert code.count("JAXPRUNE_NOTEBOOK_FAST") == 2  # where it is read, and where that is said


@every_notebook
@pytest.mark.parametrize(
    ("installed", "commands", "jax_here"),
    [
        ({"jaxprune"}, 0, None),
        (set(), 1, "jax"),
        ({"libtpu"}, 1, "jax[tpu]"),
        ({"jax_cuda12_plugin"}, 1, "jax[cuda12]"),
    ],
)
def test_first_cell_installs_only_what_is_missing(
    name: str, installed: set[str], commands: int, jax_here: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As IPython would run it, but for the installation itself.
    magics: list[tuple[str, str]] = []
    shell = SimpleNamespace(run_line_magic=lambda magic, line: magics.append((magic, line)))
    variables: dict[str, Any] = {"get_ipython": lambda: shell}
    code = TransformerManager().transform_cell(sources(name)[0])
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda module: object() if module in installed else None)
        exec(code, variables)
    assert len(magics) == commands
    assert variables.get("jax_here") == jax_here
    for magic, line in magics:
        assert magic == "pip" and line.startswith("install ")
        assert '"{source}"' in line and '"{jax_here}"' in line
        assert variables["source"].startswith("jaxprune[examples] @ git+https://")
