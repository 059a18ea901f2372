"""`jaxprune prune`: the masks of `compute_masks`, everything else as it was, and nothing overwritten."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

import jaxprune as jp
from jaxprune.cli.checkpoints import open_checkpoint
from jaxprune.cli.prune import ALLOCATIONS, SCORES, parse_structure


def values_of(path):
    checkpoint = open_checkpoint(path)
    return {leaf.path: array for leaf, array in checkpoint.read(checkpoint.leaves)}


def counts_along(array, axis, m):
    moved = np.moveaxis(array, axis, -1)
    return np.count_nonzero(moved.reshape(*moved.shape[:-1], -1, m), axis=-1)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_train_state(run, train_state, params, tmp_path):
    out = tmp_path / "pruned"
    code, report, err = run("prune", train_state, "--sparsity", 0.5, "--structure", "2:4", "--out", out, "--json")
    assert (code, err) == (0, "")
    before, after = values_of(train_state), values_of(out)
    pruned = {"params/Conv_0/kernel", "params/Dense_0/kernel"}
    for path in before:
        if path in pruned:
            assert (counts_along(after[path], -2, 4) == 2).all()
            kept = after[path] != 0
            assert after[path][kept].tobytes() == before[path][kept].tobytes()
        else:
            assert after[path].tobytes() == before[path].tobytes(), path
    expected = jp.apply_masks(params, jp.compute_masks(params, None, structure=jp.NM(2, 4)))
    assert after["params/Dense_0/kernel"].tolist() == np.asarray(expected["Dense_0"]["kernel"]).tolist()
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert checkpointer.restore(out)["step"] == 5
    left = {leaf["path"]: leaf["left"] for leaf in report["leaves"]}
    assert {path for path, reason in left.items() if reason is None} == pruned
    assert left["params/Dense_0/bias"] == "fewer than two axes"
    assert left["opt_state/0/mu/w"] == "not a parameter (name it with --where)"
    assert left["step"] == "a number, not an array"
    assert report["pruned"]["kept"] * 2 == report["pruned"]["weights"] == 32 * 16 + 9 * 8 * 16
    assert report["settings"]["axis"] == -2
    assert report["total"]["weights"] == sum(array.size for path, array in before.items() if path != "note")


def test_a_file_of_pytorch(run, torch_file, torch_arrays, tmp_path):
    out = tmp_path / "out.safetensors"
    code, report, _ = run("prune", torch_file, "--structure", "2:4", "--out", out, "--json")
    assert code == 0 and report["settings"]["axis"] == 1
    after = values_of(out)
    for path, before in torch_arrays.items():
        assert after[path].dtype == before.dtype
        if before.ndim > 1:
            assert (counts_along(after[path], 1, 4) == 2).all(), path
            kept = after[path] != 0
            assert after[path][kept].tobytes() == before[kept].tobytes()
            dropped = np.abs(before.astype(np.float64)) * ~kept
            groups = np.moveaxis(dropped, 1, -1).reshape(-1, 4).max(1)
            survivors = (
                np.moveaxis(np.where(kept, np.abs(before.astype(np.float64)), np.inf), 1, -1).reshape(-1, 4).min(1)
            )
            assert (groups <= survivors).all()
        else:
            assert after[path].tobytes() == before.tobytes()
    assert open_checkpoint(out).metadata == {"format": "pt", "licence": "none"}


@pytest.mark.parametrize(
    ("marked", "given", "axis"), [("pt", None, 0), ("np", None, 1), ("pt", -1, 1), (None, 0, 0), (None, None, 1)]
)
def test_the_axis_of_channels(run, tmp_path, marked, given, axis):
    weights = np.random.default_rng(0).normal(size=(10, 20)).astype(np.float32)
    save_file({"w": weights}, tmp_path / "a.safetensors", metadata={"format": marked} if marked else None)
    options = [] if given is None else ["--axis", given]
    out = tmp_path / "b.safetensors"
    assert (
        run("prune", tmp_path / "a.safetensors", "--sparsity", 0.5, "--structure", "channel", "--out", out, *options)[0]
        == 0
    )
    dead = ~load_file(out)["w"].any(axis=1 - axis)
    assert dead.sum() == weights.shape[axis] // 2
    strength = np.abs(weights).mean(axis=1 - axis)
    assert strength[dead].max() < strength[~dead].min()


def test_blocks(run, tmp_path):
    weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    save_file({"w": weights}, tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    assert (
        run("prune", tmp_path / "a.safetensors", "--sparsity", 0.75, "--structure", "block:8x4", "--out", out)[0] == 0
    )
    assert np.count_nonzero(load_file(out)["w"].reshape(8, 8, 16, 4).any(axis=(1, 3))) == 8 * 16 // 4


@pytest.mark.parametrize(
    ("score", "allocation"),
    [*((score, "uniform") for score in SCORES), *(("magnitude", name) for name in list(ALLOCATIONS)[1:])],
)
def test_every_score_and_allocation_is_that_of_the_library(run, tmp_path, allocation, score):
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(8, 12)).astype(np.float32), "b": 3 * rng.normal(size=(8, 12)).astype(np.float32)}
    save_file(tree, tmp_path / "a.safetensors")
    options = ["--score", score, "--allocation", allocation, "--sparsity", 0.7, "--seed", 3]
    assert run("prune", tmp_path / "a.safetensors", "--out", tmp_path / "b.safetensors", *options)[0] == 0
    masks = jp.compute_masks(tree, 0.7, score=SCORES[score], allocation=ALLOCATIONS[allocation], key=jax.random.key(3))
    written = load_file(tmp_path / "b.safetensors")
    for name in tree:
        np.testing.assert_array_equal(written[name], np.where(masks[name], tree[name], 0))


def test_where_chooses(run, train_state, tmp_path):
    out = tmp_path / "out"
    options = ["--where", "params/Dense.*kernel", "--where", ".*bias", "--json"]
    code, report, _ = run("prune", train_state, "--sparsity", 0.25, "--out", out, *options)
    assert code == 0
    left = {leaf["path"]: leaf["left"] for leaf in report["leaves"]}
    assert [path for path, reason in left.items() if reason is None] == ["params/Dense_0/bias", "params/Dense_0/kernel"]
    assert left["params/Conv_0/kernel"] == "--where leaves it out"
    assert np.count_nonzero(values_of(out)["params/Dense_0/bias"]) == 12


def test_from_orbax_to_safetensors_and_back(run, tmp_path, params):
    params = {"Dense_0": params["Dense_0"]}
    jp.storage.save(tmp_path / "a", params)
    assert run("prune", tmp_path / "a", "--sparsity", 0.5, "--out", tmp_path / "b.safetensors")[0] == 0
    assert run("prune", tmp_path / "b.safetensors", "--sparsity", 0.75, "--out", tmp_path / "c")[0] == 0
    final = jp.storage.restore(tmp_path / "c", params)
    expected = jp.apply_masks(params, jp.compute_masks(params, 0.75))
    jax.tree.map(np.testing.assert_array_equal, final, expected)


def test_nan_and_infinity_are_kept_where_the_masks_keep_them(run, tmp_path):
    weights = np.array([[np.nan, 1, np.inf, 2]], np.float32)
    save_file({"w": weights}, tmp_path / "a.safetensors")
    assert run("prune", tmp_path / "a.safetensors", "--sparsity", 0.5, "--out", tmp_path / "b.safetensors")[0] == 0
    np.testing.assert_array_equal(load_file(tmp_path / "b.safetensors")["w"], [[np.nan, 0, np.inf, 0]])


def test_leaves_that_the_pattern_does_not_reach(run, tmp_path):
    tree = {"short": np.ones((3, 5), np.float32), "long": np.ones((10, 5), np.float32)}
    save_file(tree, tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    code, report, _ = run("prune", tmp_path / "a.safetensors", "--structure", "2:4", "--out", out, "--json")
    rows = {leaf["path"]: leaf for leaf in report["leaves"]}
    assert code == 0 and rows["short"]["left"] == "axis -2 has fewer than 4 entries"
    assert rows["long"]["structure"] == "2:4, last 2 of axis -2 dense" and rows["long"]["kept"] == 30


def test_64_bit_floats_keep_their_order(run, tmp_path):
    weights = 1 + np.arange(16).reshape(4, 4) * 1e-12  # all alike in 32 bits
    save_file({"w": weights}, tmp_path / "a.safetensors")
    assert run("prune", tmp_path / "a.safetensors", "--sparsity", 0.5, "--out", tmp_path / "b.safetensors")[0] == 0
    np.testing.assert_array_equal(
        load_file(tmp_path / "b.safetensors")["w"], np.where(np.arange(16).reshape(4, 4) > 7, weights, 0)
    )
    assert jnp.zeros(1).dtype == jnp.float32


def test_nothing_is_overwritten_unless_asked(run, torch_file, tmp_path):
    out = tmp_path / "o.safetensors"
    out.write_text("mine")
    code, _, err = run("prune", torch_file, "--structure", "2:4", "--out", out)
    assert code == 2 and "--overwrite" in err and out.read_text() == "mine"
    assert run("prune", torch_file, "--structure", "2:4", "--out", out, "--overwrite")[0] == 0
    folder = tmp_path / "folder"
    assert run("prune", torch_file, "--sparsity", 0.5, "--out", folder)[0] == 0
    assert run("prune", torch_file, "--sparsity", 0.5, "--out", folder)[0] == 2
    assert run("prune", torch_file, "--sparsity", 0.9, "--out", folder, "--overwrite")[0] == 0
    before = torch_file.read_bytes()
    code, _, err = run("prune", torch_file, "--sparsity", 0.5, "--out", torch_file, "--overwrite")
    assert code == 2 and "overlaps" in err and torch_file.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sparsity", "1.5"], r"sparsity=1\.5"),
        (["--sparsity", "nan"], "sparsity=nan"),
        ([], "--sparsity is needed"),
        (["--sparsity", "0.6", "--structure", "2:4"], "fixes it at"),
        (["--structure", "5:4"], "1 <= n <= m"),
        (["--structure", "2:4:8"], "allowed are unstructured, N:M"),
        (["--structure", "block:8"], "allowed are unstructured, N:M"),
        (["--structure", "block:0x8", "--sparsity", "0.5"], "positive integer"),
        (["--structure", "2:4", "--axis", "7"], "has no axis 7"),
        (["--structure", "channel", "--sparsity", "0.5", "--axis", "-9"], "has no axis -9"),
        (["--sparsity", "0.5", "--axis", "1"], "only N:M and channel have an axis"),
        (["--sparsity", "0.5", "--score", "taylor"], "--score taylor: allowed are magnitude, lamp, random"),
        (["--sparsity", "0.5", "--allocation", "owl"], "--allocation owl: allowed are uniform, erk"),
        (["--sparsity", "0.5", "--where", "nothing"], "matches no floating parameter"),
        (["--sparsity", "0.5", "--where", "("], "not a regular expression"),
        (["--sparsity", "half"], "invalid float value"),
    ],
)
def test_bad_arguments(run, torch_file, tmp_path, options, says):
    code, out, err = run("prune", torch_file, "--out", tmp_path / "x.safetensors", *options)
    assert code == 2 and out == ""
    assert re.search(says, err), err
    assert not list(tmp_path.iterdir())


def test_nothing_that_could_be_pruned(run, tmp_path):
    save_file({"b": np.ones(4, ml_dtypes.bfloat16)}, tmp_path / "a.safetensors")
    code, _, err = run("prune", tmp_path / "a.safetensors", "--sparsity", 0.5, "--out", tmp_path / "b")
    assert code == 2 and "no floating leaf with two axes or more" in err


def test_structures_as_text():
    assert parse_structure("unstructured") == jp.Unstructured()
    assert parse_structure("channel") == jp.Channel()
    assert parse_structure("1:16") == jp.NM(1, 16)
    assert parse_structure("block:4x1") == jp.Block((4, 1))


def test_the_table_names_every_leaf(run, train_state, tmp_path):
    code, out, _ = run("prune", train_state, "--structure", "2:4", "--out", tmp_path / "o")
    assert code == 0
    for path in values_of(train_state):
        assert path in out or path == "note"
    assert "axis -2" in out and "packed (theoretical)" in out


def test_keys_of_safetensors_end_at_dots_too(run, tmp_path):
    """A train state, flattened with dots: the moments of Adam are no weights."""
    rng = np.random.default_rng(0)
    zeros = {"params.w": 32, "opt_state.0.mu.w": 0}
    save_file({name: rng.normal(size=(8, 8)).astype(np.float32) for name in zeros}, tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    assert run("prune", tmp_path / "a.safetensors", "--sparsity", 0.5, "--out", out)[0] == 0
    assert {name: int((array == 0).sum()) for name, array in load_file(out).items()} == zeros
