"""The summary table: counts, bytes, totals, and what is said about structures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

PARAMS = {
    "dense": {"kernel": jnp.ones((10, 4)), "bias": jnp.zeros(4)},
    "half": jnp.ones((4, 5), jnp.bfloat16),
    "ids": jnp.arange(3),
}


def masks():
    return {
        "dense": {"kernel": jnp.asarray(np.arange(40).reshape(10, 4) < 10), "bias": True},
        "half": jnp.asarray(np.arange(20).reshape(4, 5) < 5),
        "ids": True,
    }


def test_rows_and_totals():
    made = jp.summary(PARAMS, masks())
    assert [row.path for row in made.rows] == ["dense/bias", "dense/kernel", "half", "ids"]
    by_path = {row.path: row for row in made.rows}
    kernel, half, bias = by_path["dense/kernel"], by_path["half"], by_path["dense/bias"]
    assert (kernel.kept, kernel.weights, kernel.sparsity, kernel.shape) == (10, 40, 0.75, (10, 4))
    assert (kernel.dense_bytes, kernel.packed_bytes) == (160, 40 + 5)
    assert (half.dense_bytes, half.packed_bytes) == (40, 10 + 3)
    # A bias of zeros that no mask touches is dense.
    assert (bias.kept, bias.sparsity, bias.structure, bias.packed_bytes) == (4, 0.0, "dense", bias.dense_bytes)
    assert (made.pruned.kept, made.pruned.weights, made.pruned.sparsity) == (15, 60, 0.75)
    assert (made.total.kept, made.total.weights) == (22, 67)
    assert made.total.sparsity == pytest.approx(45 / 67)
    assert made.total.dense_bytes == sum(row.dense_bytes for row in made.rows)
    assert made.total.packed_bytes == sum(row.packed_bytes for row in made.rows)


def test_where_decides_what_counts_as_pruned():
    made = jp.summary(PARAMS, masks(), where="dense/.*")
    assert (made.pruned.kept, made.pruned.weights) == (14, 44)
    assert made.total.weights == 67


def test_asked():
    made = jp.summary(PARAMS, masks(), asked=0.75)
    assert [row.asked for row in made.rows] == [None, 0.75, 0.75, None]
    made = jp.summary(PARAMS, masks(), asked={"dense": 0.5, "half": 0.25, "ids": 0.0})
    assert [row.asked for row in made.rows] == [None, 0.5, 0.25, None]
    with pytest.raises(ValueError, match="asked is no prefix"):
        jp.summary(PARAMS, masks(), asked={"dense": 0.5})


def test_a_remainder_under_nm_is_said():
    params = {"w": jnp.ones((10, 4))}
    structure = jp.NM(2, 4)
    made = jp.summary(params, jp.compute_masks(params, None, structure=structure), structure=structure, asked=0.5)
    assert made.rows[0].structure == "2:4, last 2 of axis -2 dense"
    assert made.rows[0].kept == 4 * (2 * 2 + 2)
    assert "last 2 of axis -2 dense" in str(made)
    whole = {"w": jnp.ones((8, 4))}
    made = jp.summary(whole, jp.compute_masks(whole, None, structure=structure), structure=structure)
    assert made.rows[0].structure == "2:4"
    assert jp.summary(whole, {"w": True}, where="w", structure=jp.Block((2, 2))).rows[0].structure == "block"


def test_the_table():
    lines = str(jp.summary(PARAMS, masks(), asked=0.75)).splitlines()
    assert len(lines) == 1 + 4 + 2
    for word in ("path", "shape", "structure", "asked", "sparsity", "kept", "packed (theoretical)"):
        assert word in lines[0]
    assert lines[2].split() == ["dense/kernel", "10x4", "0.7500", "0.7500", "10", "40", "160", "45"]
    assert lines[-2].startswith("pruned parameters") and lines[-1].startswith("whole model")


def test_abstract_parameters_and_empty_trees():
    abstract = jax.eval_shape(lambda: PARAMS)
    assert jp.summary(abstract, masks()).total == jp.summary(PARAMS, masks()).total
    empty = jp.summary({}, {})
    assert empty.total.weights == 0 and empty.total.sparsity == 0.0


def test_masks_that_do_not_fit():
    with pytest.raises(ValueError, match="lacks half, ids"):
        jp.summary(PARAMS, {"dense": masks()["dense"]})


def test_a_rule_gave_a_vector_another_structure_than_nm():
    params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    masks = {"w": jnp.eye(4, dtype=bool), "b": jnp.array([True, False, True, False])}
    made = jp.summary(params, masks, structure=jp.NM(2, 4))
    assert {row.path: row.structure for row in made.rows} == {"b": "", "w": "2:4"}


@pytest.mark.parametrize("function", [jp.summary, jp.apply_masks])
def test_a_number_among_the_parameters_is_named(function):
    params = {"w": jnp.ones((2, 2)), "scale": 0.5}
    with pytest.raises(TypeError, match="the parameter scale is a float, not an array"):
        function(params, {"w": jnp.eye(2, dtype=bool), "scale": True})
