"""Both formats are read to the same bits and written back, and what is foreign or damaged is refused."""

import json
import pickle
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

import jaxprune as jp
from jaxprune.cli.checkpoints import check_output, open_checkpoint, write_checkpoint


def values_of(path):
    checkpoint = open_checkpoint(path)
    return {leaf.path: array for leaf, array in checkpoint.read(checkpoint.leaves)}


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for path in left:
        assert left[path].dtype == right[path].dtype, path
        assert left[path].shape == right[path].shape, path
        assert left[path].tobytes() == right[path].tobytes(), path


def test_safetensors_come_back(torch_file, torch_arrays, tmp_path):
    assert_same_bits(values_of(torch_file), torch_arrays)
    source = open_checkpoint(torch_file)
    write_checkpoint(tmp_path / "copy.safetensors", source, values_of(torch_file))
    assert_same_bits(values_of(tmp_path / "copy.safetensors"), torch_arrays)
    assert open_checkpoint(tmp_path / "copy.safetensors").metadata == {"format": "pt", "licence": "none"}
    assert [path.name for path in tmp_path.iterdir()] == ["copy.safetensors"]


def test_arrays_with_strides_are_written_by_value(torch_file, tmp_path):
    values = {"t": np.arange(6.0).reshape(2, 3).T, "scalar": np.float32(2)}
    write_checkpoint(tmp_path / "t.safetensors", open_checkpoint(torch_file), values)
    assert_same_bits(values_of(tmp_path / "t.safetensors"), {name: np.array(value) for name, value in values.items()})


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_comes_back(train_state, params, tmp_path):
    checkpoint = open_checkpoint(train_state)
    assert checkpoint.metadata == {"by": "me"}
    values = values_of(train_state)
    assert values["params/Conv_0/kernel"].tobytes() == np.asarray(params["Conv_0"]["kernel"]).tobytes()
    assert values["opt_state/0/nu/w"].sum() == 32
    assert values["note"].item() == "hello"
    native = {
        leaf.path: values[leaf.path].item() if leaf.form != "array" else values[leaf.path] for leaf in checkpoint.leaves
    }
    write_checkpoint(tmp_path / "copy", checkpoint, native)
    with ocp.PyTreeCheckpointer() as checkpointer:
        one, two = checkpointer.restore(train_state), checkpointer.restore(tmp_path / "copy")
    assert two["step"] == 5 and two["note"] == "hello" and two["none"] is None
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert_same_bits(values, values_of(tmp_path / "copy"))
    assert open_checkpoint(tmp_path / "copy").metadata == {"by": "me"}


def test_only_some_leaves_are_read(train_state):
    checkpoint = open_checkpoint(train_state)
    asked = [leaf for leaf in checkpoint.leaves if leaf.path in ("step", "params/Dense_0/kernel")][::-1]
    assert [(leaf.path, array.shape) for leaf, array in checkpoint.read(asked)] == [
        (leaf.path, leaf.shape) for leaf in asked
    ]


def test_leaves_beyond_one_batch(train_state, monkeypatch):
    whole = values_of(train_state)
    monkeypatch.setattr("jaxprune.cli._orbax._AT_ONCE", 1000)
    assert_same_bits(values_of(train_state), whole)


def test_an_array_that_was_sharded(tmp_path):
    mesh = jax.make_mesh((8,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    jp.storage.save(tmp_path / "w", {"w": jax.device_put(jnp.arange(64.0).reshape(16, 4), sharding)})
    assert values_of(tmp_path / "w")["w"].ravel().tolist() == list(range(64))


def test_what_jaxprune_saved_can_be_restored_after_a_copy(tmp_path, params):
    jp.storage.save(tmp_path / "a", params)
    write_checkpoint(tmp_path / "b", open_checkpoint(tmp_path / "a"), values_of(tmp_path / "a"))
    restored = jp.storage.restore(tmp_path / "b", params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_from_one_format_to_the_other_and_back(tmp_path, params):
    jp.storage.save(tmp_path / "a", params)
    values = values_of(tmp_path / "a")
    write_checkpoint(tmp_path / "b.safetensors", open_checkpoint(tmp_path / "a"), values)
    assert_same_bits(values_of(tmp_path / "b.safetensors"), values)
    write_checkpoint(tmp_path / "c", open_checkpoint(tmp_path / "b.safetensors"), values)
    jax.tree.map(np.testing.assert_array_equal, jp.storage.restore(tmp_path / "c", params), params)


def test_names_that_cannot_be_nested_stay_flat(tmp_path):
    save_file({"a": np.ones(2), "a/b": np.zeros(3), "c.d": np.ones(1)}, tmp_path / "x.safetensors")
    source = open_checkpoint(tmp_path / "x.safetensors")
    write_checkpoint(tmp_path / "x", source, values_of(tmp_path / "x.safetensors"))
    assert_same_bits(values_of(tmp_path / "x"), values_of(tmp_path / "x.safetensors"))


def test_text_does_not_fit_into_safetensors(tmp_path, train_state):
    with pytest.raises(ValueError, match="note is text"):
        write_checkpoint(tmp_path / "x.safetensors", open_checkpoint(train_state), {"note": "hello"})
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_safetensors_has_not(tmp_path, train_state):
    with pytest.raises(ValueError, match="int4"):
        values = {"x": np.ones(2, ml_dtypes.int4)}
        write_checkpoint(tmp_path / "x.safetensors", open_checkpoint(train_state), values)
    assert not list(tmp_path.iterdir())


def test_the_last_step_of_a_manager(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (9, 10):
            manager.save(step, args=ocp.args.StandardSave({"w": jnp.full(2, float(step))}))
        manager.wait_until_finished()
    checkpoint = open_checkpoint(tmp_path / "run")
    assert checkpoint.path == tmp_path / "run" / "10" / "default"
    assert values_of(tmp_path / "run")["w"].tolist() == [10, 10]
    assert values_of(tmp_path / "run" / "9")["w"].tolist() == [9, 9]


def test_several_trees_in_one_step(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        items = {name: ocp.args.StandardSave({"w": jnp.ones(2)}) for name in ("ema", "params")}
        manager.save(0, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
    with pytest.raises(ValueError, match=r"several trees; give one of them: .*/0/ema, .*/0/params"):
        open_checkpoint(tmp_path / "run")
    assert values_of(tmp_path / "run" / "0" / "ema")["w"].tolist() == [1, 1]


class Bomb:
    def __reduce__(self):
        return (sys.exit, ("it was executed",))


@pytest.mark.parametrize("name", ["m.pt", "m.PTH", "m.bin", "m.ckpt", "m.pkl", "m.npz", "m.npy"])
def test_pickles_are_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="may hold pickled objects"):
        open_checkpoint(tmp_path / name)
    # Under another name it is no safetensors file.
    (tmp_path / name).rename(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="no safetensors file, or it is damaged"):
        open_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: data + b"more",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + data[8:].replace(b"[16,32]", b"[16,99]", 1),
        lambda data: data.replace(b"BF16", b"XX16", 1),
    ],
    ids=["cut", "header cut", "empty", "longer", "length", "shape", "dtype"],
)
def test_damaged_safetensors(tmp_path, torch_file, damage):
    (tmp_path / "x.safetensors").write_bytes(damage(torch_file.read_bytes()))
    with pytest.raises(ValueError, match="no safetensors file, or it is damaged"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_a_dtype_of_safetensors_that_is_not_read(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(ValueError, match="w has the dtype F8_E8M0; the dtypes that are read are BOOL"):
        open_checkpoint(tmp_path / "x.safetensors")


def flip(folder):
    for file in folder.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            data = file.read_bytes()
            file.write_bytes(data[:-40] + bytes(b ^ 255 for b in data[-40:]))


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda folder: [file.unlink() for file in folder.rglob("*") if file.is_file() and file.parent.name == "d"],
        lambda folder: [file.unlink() for file in folder.rglob("manifest.ocdbt")],
        lambda folder: (folder / "_METADATA").write_text("{"),
        lambda folder: (folder / "_METADATA").write_text("[]"),
        lambda folder: (folder / "_METADATA").unlink(),
    ],
    ids=["flipped", "no data", "no manifest", "metadata", "other metadata", "no metadata"],
)
def test_damaged_orbax(tmp_path, damage):
    jp.storage.save(tmp_path / "m", {"w": jax.random.bernoulli(jax.random.key(0), 0.5, (64, 64))})
    damage(tmp_path / "m")
    with pytest.raises(ValueError, match=r"damaged|no Orbax checkpoint"):
        values_of(tmp_path / "m")


def test_bytes_that_only_a_checksum_tells(tmp_path):
    jp.storage.save(tmp_path / "m", {"w": jnp.ones((4, 4))})
    metadata = tmp_path / "m" / "_METADATA"
    content = json.loads(metadata.read_text())
    content["custom_metadata"]["leaves"][0]["checksum"] += 1
    metadata.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="other bytes than were saved came back for w"):
        values_of(tmp_path / "m")


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing at"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(ValueError, match="no Orbax checkpoint"):
        open_checkpoint(tmp_path)
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="holds no array"):
        open_checkpoint(tmp_path / "none.safetensors")


def test_two_leaves_of_one_name(tmp_path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "m", {"a": {"b": jnp.ones(2)}, "a/b": jnp.zeros(2)})
    with pytest.raises(ValueError, match="two leaves are called a/b"):
        open_checkpoint(tmp_path / "m")


def test_without_the_package(torch_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        open_checkpoint(torch_file)


def test_what_must_not_be_written(tmp_path, torch_file):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    jp.storage.save(tmp_path / "ours", {"w": jnp.ones(2)})
    cases = [
        (tmp_path / "m.pt", False, r"\.pt files are not written"),
        (tmp_path / "no" / "where", False, "does not exist"),
        (torch_file, True, "overlaps"),
        (torch_file.parent, True, "overlaps"),
        (tmp_path / "ours", False, "--overwrite to replace it"),
        (tmp_path / "home", True, "no checkpoint of that kind"),
        (tmp_path / "home" / "letter", True, "no checkpoint of that kind"),
    ]
    for out, overwrite, says in cases:
        with pytest.raises(ValueError, match=says):
            check_output(out, [torch_file], overwrite=overwrite)
    with pytest.raises(ValueError, match="overlaps"):
        check_output(tmp_path / "ours" / "d" / "x", [tmp_path / "ours"], overwrite=True)
    assert check_output(tmp_path / "ours", [torch_file], overwrite=True) == tmp_path / "ours"
