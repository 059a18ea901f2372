"""`jaxprune inspect` and `jaxprune diff` against NumPy, and the exit codes of the command."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxprune as jp
from jaxprune.cli import main as main_module

ROOT = Path(__file__).resolve().parents[2]


def test_inspect_counts(run, tmp_path):
    rng = np.random.default_rng(0)
    tree = {
        "w": (rng.normal(size=(32, 32)) * (rng.random((32, 32)) < 0.3)).astype(np.float32),
        "b": np.zeros(9, np.float16),
        "ids": np.arange(4),
    }
    save_file(tree, tmp_path / "a.safetensors")
    code, found, err = run("inspect", tmp_path / "a.safetensors", "--json")
    assert (code, err) == (0, "")
    rows = {row["path"]: row for row in found["leaves"]}
    for name, array in tree.items():
        zeros = int(np.sum(array == 0))
        packed = (array.size - zeros) * array.itemsize + -(-array.size // 8)
        assert rows[name]["zeros"] == zeros and rows[name]["dense_bytes"] == array.nbytes
        assert rows[name]["packed_bytes"] == min(packed, array.nbytes)
        assert rows[name]["shape"] == list(array.shape) and rows[name]["dtype"] == str(array.dtype)
    assert [name for name, row in rows.items() if row["is_weight"]] == ["w"]
    assert found["weights"]["zeros"] == rows["w"]["zeros"] and found["weights"]["leaves"] == 1
    assert found["total"]["entries"] == 32 * 32 + 9 + 4
    assert found["total"]["sparsity"] == pytest.approx(sum(np.sum(x == 0) for x in tree.values()) / (32 * 32 + 13))
    assert rows["w"]["structure"]["text"] == "unstructured" and found["structures"] == {"unstructured": 1}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--structure", "2:4"], "2:4 along axis 1"),
        (["--structure", "2:4", "--axis", "0"], "2:4 along axis 0"),
        (["--structure", "block:8x8", "--sparsity", "0.5"], "blocks 8x8"),
        (["--structure", "channel", "--sparsity", "0.5"], "dead slices along axis 0"),
        (["--sparsity", "0.9"], "unstructured"),
    ],
)
def test_what_prune_made_inspect_finds(run, tmp_path, options, says):
    weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    save_file({"w": weights}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert run("prune", tmp_path / "a.safetensors", "--out", tmp_path / "b", *options)[0] == 0
    code, found, _ = run("inspect", tmp_path / "b", "--json")
    assert code == 0 and says in found["structures"]
    code, text, _ = run("inspect", tmp_path / "b")
    assert code == 0 and f"1 of 1 weights: {says}" in text


def test_inspect_a_train_state(run, train_state):
    code, found, _ = run("inspect", train_state, "--json")
    assert code == 0 and found["text"] == ["note"] and found["format"] == "orbax"
    assert found["weights"]["leaves"] == 2 and found["weights"]["entries"] == 32 * 16 + 9 * 8 * 16
    code, found, _ = run("inspect", train_state, "--where", "params/.*", "--json")
    assert code == 0 and found["total"]["leaves"] == 3
    code, _, err = run("inspect", train_state, "--where", "kernel")
    assert code == 2 and "--where" in err and "params/Conv_0/kernel" in err


def test_names_do_not_reach_the_terminal_raw(run, tmp_path):
    save_file({"evil\x1b[2J[red]": np.ones(2)}, tmp_path / "a.safetensors")
    code, text, _ = run("inspect", tmp_path / "a.safetensors")
    assert code == 0 and "\x1b" not in text and "evil\\x1b[2J[red]" in text


def write_pair(tmp_path, a, b):
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def test_diff_of_the_same(run, torch_file, train_state):
    for path in (torch_file, train_state):
        code, found, err = run("diff", path, path, "--json")
        assert (code, err) == (0, "") and found["same"]
        assert {leaf["status"] for leaf in found["leaves"]} == {"same"}
    code, text, _ = run("diff", torch_file, torch_file)
    assert code == 0 and "A and B are the same." in text


def test_diff_counts_masks_and_norms(run, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxprune.cli.diff._CHUNK", 100)
    rng = np.random.default_rng(0)
    a, b = ((rng.normal(size=(30, 20)) * (rng.random((30, 20)) < 0.5)).astype(np.float32) for _ in range(2))
    b[:5] = a[:5]
    code, found, _ = run("diff", *write_pair(tmp_path, {"w": a, "same": a}, {"w": b, "same": a}), "--json")
    assert code == 1 and not found["same"]
    leaf = next(leaf for leaf in found["leaves"] if leaf["path"] == "w")
    assert leaf["status"] == "values" and leaf["changed"] == np.sum(a != b) and leaf["entries"] == 600
    assert leaf["kept"] == np.sum((a != 0) & (b != 0))
    assert leaf["lost"] == np.sum((a != 0) & (b == 0)) and leaf["grown"] == np.sum((a == 0) & (b != 0))
    wide = b.astype(np.float64) - a
    assert leaf["norm"] == pytest.approx(np.linalg.norm(wide), rel=1e-12)
    assert leaf["norm_a"] == pytest.approx(np.linalg.norm(a.astype(np.float64)), rel=1e-12)
    assert leaf["largest"] == pytest.approx(np.abs(wide).max(), rel=1e-12)
    assert found["total"]["norm_a"] == pytest.approx(np.sqrt(2) * leaf["norm_a"])
    assert found["total"]["leaves"] == {"same": 1, "values": 1}


def test_diff_of_shapes_dtypes_and_missing_leaves(run, tmp_path):
    a = {"gone": np.ones(2), "shape": np.ones((2, 3)), "dtype": np.ones(4, np.float32), "same": np.ones(1)}
    b = {"new": np.ones(2), "shape": np.ones((3, 2)), "dtype": np.ones(4, np.float16), "same": np.ones(1)}
    code, found, _ = run("diff", *write_pair(tmp_path, a, b), "--json")
    statuses = {leaf["path"]: leaf["status"] for leaf in found["leaves"]}
    assert code == 1
    assert statuses == {"gone": "only in A", "new": "only in B", "shape": "shape", "dtype": "dtype", "same": "same"}
    assert next(leaf for leaf in found["leaves"] if leaf["path"] == "dtype")["norm"] == 0
    code, text, _ = run("diff", *write_pair(tmp_path, a, b))
    assert (
        code == 1
        and "shape: float64[2,3] in A, float64[3,2] in B" in text
        and "same " not in text.split("all compared")[0]
    )
    assert run("diff", *write_pair(tmp_path, a, b), "--where", "same")[0] == 0
    assert run("diff", *write_pair(tmp_path, a, b), "--where", "gone")[0] == 1
    assert run("diff", *write_pair(tmp_path, a, b), "--where", "nowhere")[0] == 2


def test_diff_of_values_that_are_no_numbers(run, tmp_path):
    a = {"same": np.array([np.nan, np.inf, -0.0]), "nan": np.array([1.0, np.nan, 3.0]), "inf": np.array([1.0, np.inf])}
    b = {"same": np.array([np.nan, np.inf, 0.0]), "nan": np.array([np.nan, np.nan, 5.0]), "inf": np.array([1.0, 2.0])}
    code, found, _ = run("diff", *write_pair(tmp_path, a, b), "--json")
    rows = {leaf["path"]: leaf for leaf in found["leaves"]}
    assert code == 1 and rows["same"]["status"] == "same"
    assert rows["nan"]["changed"] == 2 and rows["nan"]["norm"] is None and rows["nan"]["largest"] is None
    assert rows["inf"]["changed"] == 1 and rows["inf"]["norm"] is None
    assert run("diff", *write_pair(tmp_path, a, b))[0] == 1


def test_diff_of_large_integers(run, tmp_path):
    a, b = {"n": np.array([2**60])}, {"n": np.array([2**60 + 1])}
    code, found, _ = run("diff", *write_pair(tmp_path, a, b), "--json")
    assert code == 1 and found["leaves"][0]["changed"] == 1 and found["leaves"][0]["largest"] == 1


def test_diff_of_text_and_complex_numbers(run, train_state, tmp_path):
    code, found, _ = run("diff", train_state, train_state, "--where", "note", "--json")
    assert code == 0 and found["leaves"][0]["status"] == "same"
    a, b = {"z": np.array([1 + 1j, 0], np.complex64)}, {"z": np.array([1 - 1j, 0], np.complex64)}
    code, found, _ = run("diff", *write_pair(tmp_path, a, b), "--json")
    assert code == 1 and found["leaves"][0]["norm"] == 2


def test_diff_between_formats(run, tmp_path):
    tree = {"layer": {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}}
    jp.storage.save(tmp_path / "a", tree)
    flat = {"layer.w": np.ones((2, 2), np.float32), "layer.b": np.zeros(2, np.float32)}
    save_file(flat, tmp_path / "b.safetensors")
    code, found, _ = run("diff", tmp_path / "a", tmp_path / "b.safetensors", "--json")
    assert code == 0 and {leaf["path"] for leaf in found["leaves"]} == {"layer/w", "layer/b"}


def test_pruning_is_what_diff_sees(run, torch_file, tmp_path):
    out = tmp_path / "o.safetensors"
    _, made, _ = run("prune", torch_file, "--structure", "2:4", "--out", out, "--json")
    code, found, _ = run("diff", torch_file, out, "--json")
    assert code == 1
    assert found["total"]["lost"] == made["pruned"]["weights"] - made["pruned"]["kept"]
    assert found["total"]["grown"] == 0 and found["total"]["changed"] == found["total"]["lost"]
    assert next(leaf for leaf in found["leaves"] if leaf["path"] == "model.steps")["status"] == "same"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--help"], 0),
        (["--version"], 0),
        (["explode"], 2),
        (["inspect"], 2),
        (["inspect", "/no/such"], 2),
        (["diff", "/no/such", "/no/other"], 2),
        (["prune", "/no/such", "--sparsity", "0.5", "--out", "/tmp/x"], 2),
    ],
)
def test_exit_codes(run, arguments, code):
    assert run(*arguments)[0] == code


@pytest.mark.parametrize("command", ["inspect", "prune", "diff"])
def test_damage_is_bad_input_for_every_command(run, tmp_path, torch_file, command):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(torch_file.read_bytes()[:-1])
    rest = {"inspect": [], "prune": ["--sparsity", 0.5, "--out", tmp_path / "out"], "diff": [torch_file]}[command]
    code, out, err = run(command, bad, *rest, "--json")
    assert code == 2 and out == "" and f"jaxprune {command}: " in err and "damaged" in err and "Traceback" not in err


def test_an_error_of_our_own_is_neither_a_difference_nor_bad_input(run, torch_file, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("boom")

    monkeypatch.setattr("jaxprune.cli.diff.open_checkpoint", broken)
    code, _, err = run("diff", torch_file, torch_file)
    assert code == 3 and "Traceback" in err and "boom" in err


def test_interrupted(run, torch_file, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxprune.cli.inspect.open_checkpoint", stop)
    assert run("inspect", torch_file)[0] == 130


def test_as_a_process(torch_file):
    """`python -m jaxprune`."""
    command = [sys.executable, "-m", "jaxprune", "inspect", str(torch_file)]
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert "model.fc.weight" in done.stdout and "all leaves" in done.stdout


@pytest.mark.parametrize(("arguments", "code"), [("inspect A", 0), ("diff A B", 1), ("diff A B --json", 1)])
def test_a_reader_that_goes_away_changes_no_exit_code(tmp_path, arguments, code):
    save_file({"w": np.ones(2)}, tmp_path / "A")
    save_file({"w": np.zeros(2)}, tmp_path / "B")
    command = f"{sys.executable} -m jaxprune {arguments} | true; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_help_documents_the_exit_codes(run):
    for arguments in ([], ["inspect"], ["prune"], ["diff"]):
        code, out, _ = run(*arguments, "--help")
        assert code == 0 and "exit codes: 0" in out
    assert main_module.DIFFERENT == 1 and main_module.BAD_INPUT == 2
