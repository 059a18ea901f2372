"""`compute_masks` as a whole: exact budgets, rules, what is never pruned, and every bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import scores as scores_


def random_params(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        "conv": {"kernel": normal(3, 3, 4, 8), "bias": jnp.zeros(8)},
        "dense": {"kernel": normal(40, 16), "bias": jnp.zeros(16)},
        "out": {"kernel": normal(16, 10)},
    }


KERNELS = ("conv", "dense", "out")


def kept(masks):
    return sum(int(masks[name]["kernel"].sum()) for name in KERNELS)


def total(params):
    return sum(params[name]["kernel"].size for name in KERNELS)


ALLOCATIONS = {
    "uniform": jp.allocation.uniform,
    "erk": jp.allocation.erk,
    "global": jp.allocation.global_,
    "global_normalized": jp.allocation.global_normalized,
    "lamp": jp.allocation.lamp,
}


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [0.731, 0.98])
def test_budget_to_one_weight(name, sparsity):
    params = random_params()
    masks = jp.compute_masks(params, sparsity, allocation=ALLOCATIONS[name])
    assert abs(kept(masks) - round((1 - sparsity) * total(params))) <= 1
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    for mask, param in zip(jax.tree.leaves(masks), jax.tree.leaves(params), strict=True):
        assert mask.dtype == bool
        assert mask.shape in (param.shape, ())
    assert masks["conv"]["bias"].shape == () and bool(masks["conv"]["bias"])


def test_magnitude_keeps_the_largest():
    params = random_params()
    masks = jp.compute_masks(params, 0.8)
    for name in KERNELS:
        weight, mask = np.abs(params[name]["kernel"]), np.asarray(masks[name]["kernel"])
        assert weight[mask].min() >= weight[~mask].max()


@pytest.mark.parametrize("name", ["erk"])
def test_jit_gives_the_same_masks(name):
    params = random_params()

    def make(p):
        return jp.compute_masks(p, 0.7, allocation=ALLOCATIONS[name])

    plain, jitted = make(params), jax.jit(make)(params)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_traced_sparsity_is_one_program_and_meets_the_budget(name):
    params, traces = random_params(), []

    @jax.jit
    def make(p, sparsity):
        traces.append(name)
        return jp.compute_masks(p, sparsity, allocation=ALLOCATIONS[name])

    for sparsity in (0.1, 0.5, 0.9):
        masks = make(params, jnp.float32(sparsity))
        assert abs(kept(masks) - round((1 - sparsity) * total(params))) <= 1
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["uniform", "global"])
def test_progress_runs_from_dense_to_the_target(name):
    params = random_params()

    @jax.jit
    def make(p, progress):
        return jp.compute_masks(p, 0.8, allocation=ALLOCATIONS[name], progress=progress)

    counts = [kept(make(params, jnp.float32(t))) for t in (0.0, 0.25, 0.5, 1.0)]
    final = jp.compute_masks(params, 0.8, allocation=ALLOCATIONS[name])
    assert counts[0] == total(params)
    assert counts == sorted(counts, reverse=True)
    half = round(total(params) * (1 - 0.8 * 0.5))
    assert abs(counts[2] - half) <= len(KERNELS)
    for a, b in zip(jax.tree.leaves(make(params, jnp.float32(1.0))), jax.tree.leaves(final), strict=True):
        np.testing.assert_array_equal(a, b)


def test_integers_and_bools_are_never_pruned():
    params = {
        "ids": jnp.zeros((4, 4), jnp.int32),
        "flags": jnp.zeros((4, 4), bool),
        "w": jnp.arange(16.0).reshape(4, 4),
    }
    for where in (None, ".*", lambda path, leaf: True, True):
        masks = jp.compute_masks(params, 0.5, where=where)
        assert masks["ids"].shape == masks["flags"].shape == ()
        assert bool(masks["ids"]) and bool(masks["flags"])
        assert int(masks["w"].sum()) == 8
    masks = jp.compute_masks(params, 0.5, score=scores_.random, key=jax.random.key(0))
    assert int(masks["w"].sum()) == 8


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes(dtype):
    params = {"w": jnp.arange(-20.0, 20.0).reshape(5, 8).astype(dtype)}
    mask = jp.compute_masks(params, 0.75)["w"]
    assert int(mask.sum()) == 10
    np.testing.assert_array_equal(np.asarray(mask).reshape(-1)[:5], True)


@pytest.mark.parametrize("structure", [jp.Block((3, 5), reduce="max"), jp.Channel()], ids=str)
def test_structures_meet_the_sparsity_to_one_unit(structure):
    params = {"w": random_params()["dense"]["kernel"], "v": random_params()["out"]["kernel"]}
    for allocation in (jp.allocation.uniform, jp.allocation.global_):
        masks = jp.compute_masks(params, 0.5, structure=structure, allocation=allocation)
        for name, mask in masks.items():
            units = structure.pool(params[name])
            again = structure.expand(structure.pool(mask.astype(jnp.float32)) > 0, mask.shape)
            np.testing.assert_array_equal(mask, again)  # no unit is torn
            if allocation is jp.allocation.uniform:
                kept_units = int((structure.pool(mask.astype(jnp.float32)) > 0).sum())
                assert abs(kept_units - units.size / 2) <= 1


def test_nm_under_compute_masks():
    params = random_params()
    for sparsity in (0.5, None):
        masks = jax.jit(lambda p, s=sparsity: jp.compute_masks(p, s, structure=jp.NM(2, 4)))(params)
        assert kept(masks) == total(params) // 2
        groups = np.asarray(masks["dense"]["kernel"]).reshape(10, 4, 16)
        np.testing.assert_array_equal(groups.sum(1), 2)


# Rules


def test_the_first_matching_rule_wins():
    params = random_params()
    rules = [
        jp.Rule(pattern="conv/kernel", sparsity=0.25),
        jp.Rule(pattern=".*/kernel", sparsity=0.5),
    ]
    masks = jp.compute_masks(params, None, rules=rules)
    per_leaf = jp.sparsity(masks, params, per_leaf=True)
    assert per_leaf["conv"]["kernel"] == 0.25
    assert per_leaf["dense"]["kernel"] == per_leaf["out"]["kernel"] == 0.5


@pytest.mark.parametrize("name", ["uniform", "erk", "global"])
def test_the_others_make_up_for_a_rule(name):
    params = random_params()
    rules = [jp.Rule(pattern="out/.*", sparsity=0.25)]
    masks = jp.compute_masks(params, 0.7, rules=rules, allocation=ALLOCATIONS[name])
    assert int(masks["out"]["kernel"].sum()) == 120
    assert abs(kept(masks) - round(0.3 * total(params))) <= 1


def test_rules_change_structure_and_score():
    params = random_params()
    rules = [
        jp.Rule(pattern="dense/.*", structure=jp.NM(1, 4), sparsity=0.75),
        jp.Rule(pattern="out/.*", score=scores_.random),
    ]
    masks = jax.jit(lambda p, key: jp.compute_masks(p, 0.5, rules=rules, key=key))(params, jax.random.key(1))
    groups = np.asarray(masks["dense"]["kernel"]).reshape(10, 4, 16)
    np.testing.assert_array_equal(groups.sum(1), 1)
    plain = jp.compute_masks({"out": params["out"]}, 0.5)
    assert int(masks["out"]["kernel"].sum()) == int(plain["out"]["kernel"].sum())
    assert not np.array_equal(masks["out"]["kernel"], plain["out"]["kernel"])


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ([jp.Rule(pattern="nothing/.*", sparsity=0.5)], "nothing/"),
        # `match` wants a whole path.
        ([jp.Rule(pattern="conv", sparsity=0.5)], "conv/kernel, dense/kernel, out/kernel"),
        # Not in the `where` set.
        ([jp.Rule(pattern=".*/bias", sparsity=0.5)], r"\.\*/bias"),
        # An earlier rule takes all that it matches.
        ([jp.Rule(pattern=".*", sparsity=0.5), jp.Rule(pattern="out/.*", sparsity=0.1)], "out/"),
    ],
)
def test_unused_rules_raise(rules, word):
    with pytest.raises(ValueError, match=word):
        jp.compute_masks(random_params(), 0.5, rules=rules)


# An explicit tree


def test_an_explicit_tree_and_a_prefix():
    params = {"a": {"x": jnp.ones((4, 5)), "y": jnp.ones((2, 5))}, "b": jnp.ones((10, 10)), "c": jnp.ones(3)}
    masks = jp.compute_masks(params, None, allocation={"a": 0.5, "b": 0.9, "c": 0.0})
    assert [int(m.sum()) for m in jax.tree.leaves(masks)] == [10, 5, 10, 1]
    wrapped = jp.compute_masks(params, None, allocation=jp.allocation.explicit({"a": 0.5, "b": 0.9, "c": 0.0}))
    for a, b in zip(jax.tree.leaves(masks), jax.tree.leaves(wrapped), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_explicit_tree_that_does_not_fit():
    params = {"a": jnp.ones((4, 5)), "b": jnp.ones((10, 10))}
    with pytest.raises(ValueError, match="tree of sparsities is no prefix"):
        jp.compute_masks(params, None, allocation={"a": 0.5})
    with pytest.raises(ValueError, match=r"sparsity of b=1\.5"):
        jp.compute_masks(params, None, allocation={"a": 0.5, "b": 1.5})
    with pytest.raises(ValueError, match=r"sparsity=0\.5 beside a tree of sparsities"):
        jp.compute_masks(params, 0.5, allocation={"a": 0.5, "b": 0.5})


# Bad inputs


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, 90, float("nan")])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=f"sparsity={sparsity}.*0 <= sparsity < 1"):
        jp.compute_masks(random_params(), sparsity)
    with pytest.raises(ValueError, match=rf"Rule\('\.\*'\) sparsity={sparsity}"):
        jp.Rule(pattern=".*", sparsity=sparsity)


def test_sparsity_that_is_no_number():
    with pytest.raises(TypeError, match="sparsity"):
        jp.compute_masks(random_params(), [0.5])


def test_no_sparsity_at_all():
    with pytest.raises(ValueError, match=r"sparsity=None.*conv/kernel, dense/kernel, out/kernel"):
        jp.compute_masks(random_params(), None)
    with pytest.raises(ValueError, match=r"sparsity=None.*conv/kernel, dense/kernel"):
        jp.compute_masks(random_params(), None, rules=[jp.Rule(pattern="out/.*", structure=jp.NM(2, 4), sparsity=0.5)])


def test_sparsity_that_nm_cannot_have():
    with pytest.raises(ValueError, match=r"sparsity=0\.9 for conv/kernel under NM\(2, 4\).*1 - n/m = 0\.5"):
        jp.compute_masks(random_params(), 0.9, structure=jp.NM(2, 4))
    rules = [jp.Rule(pattern="out/.*", structure=jp.NM(1, 4))]
    with pytest.raises(ValueError, match=r"sparsity=0\.5 for out/kernel under NM\(1, 4\)"):
        jp.compute_masks(random_params(), 0.5, rules=rules)


def test_where_that_matches_nothing():
    with pytest.raises(ValueError, match=r"where='nope'.*conv/bias, conv/kernel, dense/bias"):
        jp.compute_masks(random_params(), 0.5, where="nope")


def test_budget_that_cannot_be_met():
    params = random_params()
    rules = [jp.Rule(pattern="dense/.*", sparsity=0.0)]
    for allocation in ALLOCATIONS.values():
        with pytest.raises(ValueError, match="cannot be met by 2 parameters"):
            jp.compute_masks(params, 0.9, rules=rules, allocation=allocation)


@pytest.mark.parametrize(
    ("score", "word"),
    [
        (scores_.saliency, "saliency needs grads="),
        (scores_.taylor, "taylor needs grads="),
        (scores_.movement, "movement needs grads="),
        (scores_.fisher, r"fisher needs grads \(or stats\)="),
        (scores_.random, "random needs key="),
    ],
)
def test_missing_inputs_of_scores(score, word):
    with pytest.raises(ValueError, match=word):
        jp.compute_masks(random_params(), 0.5, score=score)


def test_scores_of_another_structure():
    with pytest.raises(ValueError, match=r"tree of scores.*lacks conv/bias"):
        jp.compute_masks(random_params(), 0.5, score=lambda params, **_: {"out": params["out"]})


def test_a_bad_pattern():
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
        jp.Rule(pattern="(")


def test_masks_do_not_change_parameters_and_keep_nan():
    params = {"w": jnp.array([[1.0, jnp.nan], [3.0, -jnp.inf]])}
    mask = jp.compute_masks(params, 0.5)["w"]
    assert mask.tolist() == [[False, True], [False, True]]


def signed(params, **inputs):
    """The weights themselves: negative ones rank below pruned ones, which are zero."""
    del inputs
    return params


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_among_ranks_what_is_pruned_below_all_else(name):
    params = random_params()
    earlier = jp.compute_masks(params, 0.3, score=signed, allocation=ALLOCATIONS[name])
    pruned = jp.apply_masks(params, earlier)
    later = jp.compute_masks(pruned, 0.6, score=signed, allocation=ALLOCATIONS[name], among=earlier)
    assert abs(kept(later) - round(0.4 * total(params))) <= 1
    for leaf in KERNELS:
        assert not (later[leaf]["kernel"] & ~earlier[leaf]["kernel"]).any()


def test_among_under_nm_and_in_8_bits():
    params = {"w": jnp.array([[-4.0], [-3.0], [-2.0], [-1.0]])}
    earlier = {"w": jnp.array([[False], [True], [False], [True]])}
    for dtype in (jnp.float32, jnp.float8_e4m3fn):
        mine = jax.tree.map(lambda p, d=dtype: p.astype(d), params)
        for structure, sparsity in ((jp.NM(2, 4), None), (jp.Unstructured(), 0.5)):
            masks = jp.compute_masks(mine, sparsity, structure=structure, score=signed, among=earlier)
            assert masks["w"].tolist() == earlier["w"].tolist()


def test_among_of_other_parameters():
    with pytest.raises(ValueError, match="among"):
        jp.compute_masks({"w": jnp.ones((2, 2))}, 0.5, among={"v": jnp.ones((2, 2), bool)})
