"""Checkpoints: the same bits come back, and what is foreign or damaged is refused with its name."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

PARAMS = {"a": {"w": jnp.linspace(-1, 1, 64 * 32).reshape(64, 32)}, "b": jnp.zeros(4)}


def optimiser(packed=False):
    return jp.sparsify(
        optax.sgd(0.01, momentum=0.9), jp.pruners.rigl(0.75, every=3, end=30), key=jax.random.key(7), pack_masks=packed
    )


def steps(tx, params, state, count):
    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.sum(jnp.sin(3 * p["a"]["w"])) + jnp.sum(p["b"]))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(count):
        params, state = step(params, state)
    return params, state


def assert_same_bits(left, right):
    def one(a, b):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype

    jax.tree.map(one, left, right)


@pytest.mark.parametrize("packed", [False, True])
def test_training_goes_on_to_the_same_bits(tmp_path, packed):
    tx = optimiser(packed)
    halfway = steps(tx, PARAMS, tx.init(PARAMS), 7)
    jp.storage.save(tmp_path / "half", halfway)
    restored = jp.storage.restore(tmp_path / "half", (PARAMS, tx.init(PARAMS)))
    assert_same_bits(restored, halfway)
    assert_same_bits(steps(tx, *restored, 8), steps(tx, *halfway, 8))


def test_restored_by_shapes_alone(tmp_path):
    tx = optimiser()
    state = tx.init(PARAMS)
    jp.storage.save(tmp_path / "state", state)
    assert_same_bits(jp.storage.restore(tmp_path / "state", jax.eval_shape(tx.init, PARAMS)), state)


def test_low_precision_and_empty_leaves(tmp_path):
    tree = {"bf16": jnp.arange(5, dtype=jnp.bfloat16), "none": jnp.zeros((0, 3)), "scalar": jnp.float16(2)}
    jp.storage.save(tmp_path / "tree", tree)
    assert_same_bits(jp.storage.restore(tmp_path / "tree", tree), tree)


def test_nothing_is_overwritten_unless_asked(tmp_path):
    jp.storage.save(tmp_path / "m", {"w": jnp.ones(2, bool)})
    with pytest.raises(ValueError, match=r"m exists; .*overwrite=True"):
        jp.storage.save(tmp_path / "m", {"w": jnp.zeros(2, bool)})
    jp.storage.save(tmp_path / "m", {"w": jnp.zeros(2, bool)}, overwrite=True)
    assert jp.storage.restore(tmp_path / "m", {"w": jnp.ones(2, bool)})["w"].tolist() == [False, False]


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        jp.storage.restore(tmp_path / "absent", PARAMS)


@pytest.mark.parametrize("function", [jp.storage.save, jp.storage.restore])
def test_addresses_are_refused(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="gs://bucket/masks"):
        function("gs://bucket/masks", {"w": jnp.ones(2)})
    assert not list(tmp_path.iterdir())


def test_no_array(tmp_path):
    with pytest.raises(TypeError, match="name is a str"):
        jp.storage.save(tmp_path / "x", {"name": "w"})


@pytest.mark.parametrize(
    ("like", "says"),
    [
        ({"w": jnp.zeros((2, 3), bool)}, r"w \(saved: bool\[2, 4\], asked for: bool\[2, 3\]\)"),
        ({"w": jnp.zeros((2, 4), jnp.uint8)}, r"w \(saved: bool\[2, 4\], asked for: uint8\[2, 4\]\)"),
        ({"v": jnp.zeros((2, 4), bool)}, r"w \(saved: bool\[2, 4\], asked for: nothing\), v \(saved: nothing"),
    ],
)
def test_another_tree(tmp_path, like, says):
    jp.storage.save(tmp_path / "m", {"w": jnp.ones((2, 4), bool)})
    with pytest.raises(ValueError, match=says):
        jp.storage.restore(tmp_path / "m", like)


def test_foreign_folders(tmp_path):
    import orbax.checkpoint as ocp

    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="text"):
        jp.storage.restore(tmp_path / "text", PARAMS)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "other", args=ocp.args.StandardSave({"w": jnp.ones(2)}))
    with pytest.raises(ValueError, match=r"was not made by jp\.storage\.save"):
        jp.storage.restore(tmp_path / "other", {"w": jnp.ones(2)})


def data_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.parent.name == "d")


def damage_all(folder: Path, change) -> None:
    files = data_files(folder)
    assert files
    for file in files:
        file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: damage_all(folder, lambda data: data[: len(data) // 2]),
        lambda folder: damage_all(folder, lambda data: data[:-40] + bytes(b ^ 255 for b in data[-40:])),
        lambda folder: [file.unlink() for file in data_files(folder)],
        lambda folder: [file.unlink() for file in folder.rglob("manifest.ocdbt")],
        lambda folder: (folder / "_METADATA").write_text("{"),
        lambda folder: (folder / "_METADATA").unlink(),
    ],
    ids=["truncated", "flipped", "no data", "no manifest", "metadata", "no metadata"],
)
def test_damage_is_noticed(tmp_path, damage):
    tree = {"w": jax.random.bernoulli(jax.random.key(0), 0.5, (64, 64))}
    jp.storage.save(tmp_path / "m", tree)
    damage(tmp_path / "m")
    with pytest.raises(ValueError, match=r"damaged"):
        jp.storage.restore(tmp_path / "m", tree)


def test_bytes_that_orbax_lets_pass(tmp_path):
    tree = {"w": jnp.ones((4, 4))}
    jp.storage.save(tmp_path / "m", tree)
    metadata = tmp_path / "m" / "_METADATA"
    content = json.loads(metadata.read_text())
    content["custom_metadata"]["leaves"][0]["checksum"] += 1
    metadata.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="other bytes than were saved came back for w"):
        jp.storage.restore(tmp_path / "m", tree)
