"""Paths in every kind of tree, and every form of `where`."""

import collections
import dataclasses
from typing import NamedTuple

import equinox as eqx
import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune import trees

Pair = collections.namedtuple("Pair", ["first", "second"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    weight: jax.Array
    bias: jax.Array


def ones(*shape):
    return jnp.ones(shape)


class Linear(eqx.Module):
    weight: jax.Array
    bias: jax.Array
    activation: str = eqx.field(static=True)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.ones_init(), (None, "model"))
        return nn.Dense(3, kernel_init=init, name="dense")(x)


def nnx_state():
    return nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)


def linen_boxed():
    return Boxed().init(jax.random.key(0), ones(1, 2))["params"]


TREES = {
    "dict": (lambda: {"a": {"kernel": ones(2, 3), "bias": ones(3)}}, ["a/bias", "a/kernel"]),
    "frozen": (lambda: flax.core.freeze({"a": {"kernel": ones(2, 3), "bias": ones(3)}}), ["a/bias", "a/kernel"]),
    "list": (lambda: {"layers": [ones(2, 3), ones(3)]}, ["layers/0", "layers/1"]),
    "tuple": (lambda: (ones(2, 3), (ones(3),)), ["0", "1/0"]),
    "namedtuple": (lambda: Pair(ones(2, 3), ones(3)), ["first", "second"]),
    "dataclass": (lambda: {"l": Layer(ones(2, 3), ones(3))}, ["l/weight", "l/bias"]),
    "nnx with variables": (nnx_state, ["bias", "kernel"]),
    "nnx pure": (lambda: nnx.as_pure(nnx_state()), ["bias", "kernel"]),
    "equinox": (lambda: Linear(ones(2, 3), ones(3), "relu"), ["weight", "bias"]),
    "linen partitioned": (linen_boxed, ["dense/bias", "dense/kernel"]),
    "one array": (lambda: ones(2, 3), [""]),
}


@pytest.mark.parametrize("name", TREES)
def test_paths(name):
    make, want = TREES[name]
    tree = make()
    assert trees.paths(tree) == want
    assert [path for path, _ in trees.leaves_with_paths(tree)] == want


@pytest.mark.parametrize("name", TREES)
def test_default_where_and_masks(name):
    tree = TREES[name][0]()
    chosen = trees.resolve_where(None, tree)
    assert jax.tree.structure(chosen) == jax.tree.structure(tree)
    assert jax.tree.leaves(chosen) == [leaf.ndim >= 2 for leaf in jax.tree.leaves(tree)]
    masks = jp.compute_masks(tree, 0.5)
    assert jax.tree.structure(masks) == jax.tree.structure(tree)
    pruned = jp.apply_masks(tree, masks)
    assert jax.tree.structure(pruned) == jax.tree.structure(tree)
    assert sorted(int((leaf != 0).sum()) for leaf in jax.tree.leaves(pruned))[-1] == 3
    assert jp.sparsity(masks, tree) == pytest.approx(3 / sum(leaf.size for leaf in jax.tree.leaves(tree)))


def test_a_key_named_value_stays_in_the_path():
    assert trees.paths({"attention": {"value": ones(2, 2), "key": ones(2)}}) == ["attention/key", "attention/value"]


class Attention(NamedTuple):
    query: jax.Array
    key: jax.Array
    value: jax.Array


def test_a_field_named_value_stays_in_the_path():
    tree = {"attention": Attention(ones(2, 3), ones(2, 3), ones(2, 3))}
    assert trees.paths(tree) == ["attention/query", "attention/key", "attention/value"]
    assert trees.resolve_where(".*/value", tree) == {"attention": Attention(False, False, True)}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.just(0.0),
        lambda children: st.one_of(
            st.dictionaries(st.text("abc", min_size=1, max_size=3), children, max_size=3),
            st.lists(children, max_size=3),
            st.tuples(children, children),
        ),
        max_leaves=12,
    )
)
def test_paths_lead_to_their_leaves(tree):
    def walk(node, prefix):
        if isinstance(node, dict):
            items = [(key, node[key]) for key in sorted(node)]
        elif isinstance(node, (list, tuple)):
            items = list(enumerate(node))
        else:
            return ["/".join(prefix)]
        return [path for key, child in items for path in walk(child, [*prefix, str(key)])]

    assert trees.paths(tree) == walk(tree, [])


def params():
    return {
        "dense": {"kernel": ones(2, 3), "bias": ones(3)},
        "embed": ones(4, 2),
        "ids": jnp.zeros((2, 2), jnp.int32),
        "flag": jnp.ones((2, 2), bool),
        "key": jax.random.key(0),
    }


def taken(where):
    tree = params()
    flags = jax.tree.leaves(trees.resolve_where(where, tree))
    assert all(type(flag) is bool for flag in flags)
    return [path for path, flag in zip(trees.paths(tree), flags, strict=True) if flag]


@pytest.mark.parametrize(
    ("where", "want"),
    [
        (None, ["dense/kernel", "embed"]),
        (".*", ["dense/bias", "dense/kernel", "embed"]),
        ("dense/.*", ["dense/bias", "dense/kernel"]),
        (["embed", ".*/bias"], ["dense/bias", "embed"]),
        (("embed", "dense/kernel"), ["dense/kernel", "embed"]),
        (lambda path, leaf: "dense" in path, ["dense/bias", "dense/kernel"]),
        (lambda path, leaf: leaf.ndim == 1, ["dense/bias"]),
        (True, ["dense/bias", "dense/kernel", "embed"]),
        ({"dense": True, "embed": False, "ids": True, "flag": True, "key": True}, ["dense/bias", "dense/kernel"]),
        (
            {"dense": {"kernel": np.True_, "bias": False}, "embed": True, "ids": False, "flag": False, "key": False},
            ["dense/kernel", "embed"],
        ),
    ],
)
def test_every_form_of_where(where, want):
    assert taken(where) == want


def test_an_equinox_module_of_bools():
    module = Linear(ones(2, 3), ones(3), "relu")
    where = Linear(False, True, "relu")
    assert jax.tree.leaves(trees.resolve_where(where, module)) == [False, True]


def test_where_on_abstract_parameters():
    abstract = jax.eval_shape(lambda: {"w": ones(2, 3), "b": ones(3)})
    assert trees.resolve_where(None, abstract) == {"b": False, "w": True}


@pytest.mark.parametrize("where", ["kernel", ["nope", "ids"], lambda path, leaf: False, False, "ids|flag|key"])
def test_where_that_matches_nothing_lists_the_paths(where):
    with pytest.raises(ValueError, match=r"where=.*dense/bias, dense/kernel, embed, flag, ids, key"):
        trees.resolve_where(where, params())


def test_default_where_that_matches_nothing():
    with pytest.raises(ValueError, match=r"default.*ndim >= 2.*bias"):
        trees.resolve_where(None, {"bias": ones(3)})


def test_long_lists_of_paths_are_cut():
    with pytest.raises(ValueError, match="and 30 more"):
        trees.resolve_where("nope", {f"p{i:02}": ones(2, 2) for i in range(50)})


def test_bad_where():
    with pytest.raises(ValueError, match=r"'\[' is not a regular expression"):
        trees.resolve_where("[", params())
    with pytest.raises(ValueError, match="where is no prefix"):
        trees.resolve_where({"dense": True}, params())
    with pytest.raises(TypeError, match="where=3"):
        trees.resolve_where(3, params())


def test_nothing_to_prune_in_an_empty_tree():
    assert trees.resolve_where(None, {}) == {}
    assert trees.paths({"a": None, "b": optax.MaskedNode(), "c": 1.0}) == ["c"]


def test_check_same_structure_names_the_paths():
    tree = {"a": ones(2), "b": ones(2)}
    trees.check_same_structure(tree, dict(tree), "x")
    with pytest.raises(ValueError, match=r"the thing has another.*lacks b; it has c that"):
        trees.check_same_structure({"a": 1, "c": 1}, tree, "the thing")
    with pytest.raises(ValueError, match="containers differ"):
        trees.check_same_structure([1.0, 2.0], (1.0, 2.0), "a list")
