"""A resized NNX module agrees with the replay, trains, and comes back from a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.frameworks import nnx as adapter
from tests.frameworks.plans import line_of, named, random_plan
from tests.zoo.models import nnx_models as zoo
from tests.zoo.models._model import Draw

MODULES = {"mlp": zoo.MLP, "cnn": zoo.CNN, "transformer": zoo.Transformer, "recurrent": zoo.Recurrent}
ENTRIES = dict(zip(MODULES, zoo.BUILDERS, strict=True))


def normal(*shape):
    return Draw(1).normal(*shape)


def filled(make):
    """A module with random values in all Variables, none of them one or zero."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    drawn = jax.tree.map(lambda leaf: leaf, nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, Draw(3).like(drawn))
    return nnx.merge(graph, state)


def check_agrees(module, *args, model=None, where=lambda group: True, **options):
    model = adapter.trace(module, *args, **options) if model is None else model
    plan = random_plan(model, where=where)
    small = adapter.resize(module, model, plan)
    params = jp.shrink(model, plan, adapter.parameters(module))
    replayed = jax.jit(jp.shrunk_function(model, plan, norm="resize"))(params, *args)
    outputs = nnx.jit(options.get("call", lambda module, *args: module(*args)))(small, *args)
    np.testing.assert_allclose(outputs, replayed, atol=1e-5)
    return model, plan, small


@pytest.mark.parametrize("name", MODULES)
def test_module_agrees_with_the_replay(name):
    entry = ENTRIES[name]()
    module = filled(MODULES[name])
    shapes = jax.tree.map(jnp.shape, adapter.parameters(module))
    check_agrees(module, *entry.args)
    assert jax.tree.map(jnp.shape, adapter.parameters(module)) == shapes, "the module given was changed"


def test_a_model_that_trace_of_the_package_made():
    module, x = filled(zoo.MLP), normal(3, 7)
    graph, state = nnx.split(module)
    for params in (state, nnx.to_pure_dict(state), {"inside": nnx.to_pure_dict(state)}):

        def apply(params, x):
            return nnx.merge(graph, params.get("inside", params) if isinstance(params, dict) else params)(x)

        model = jp.trace(apply, params, x)
        assert len(model.groups) == 2
        small = adapter.resize(module, model, random_plan(model))
        assert (small.first.out_features, small.second.in_features) == (7, 7)


class Layers(nnx.Module):
    """Layers of which the zoo has none."""

    def __init__(self, rngs):
        self.up = nnx.Conv(3, 12, (3, 3), rngs=rngs)
        self.depthwise = nnx.Conv(12, 12, (3, 3), feature_group_count=12, rngs=rngs)
        self.mix = nnx.Conv(12, 12, (1, 1), rngs=rngs)
        self.groups = nnx.GroupNorm(12, num_groups=4, rngs=rngs)
        self.larger = nnx.ConvTranspose(12, 8, (2, 2), strides=(2, 2), rngs=rngs)
        self.general = nnx.LinearGeneral(8, (3, 4), rngs=rngs)
        self.rms = nnx.RMSNorm(4, rngs=rngs)
        self.einsum = nnx.Einsum("bij,ijk->bk", (3, 4, 10), (10,), rngs=rngs)
        self.low_rank = nnx.LoRALinear(10, 6, lora_rank=2, rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.groups(self.mix(nnx.relu(self.depthwise(self.up(x))))))
        x = nnx.relu(self.rms(self.general(self.larger(x).mean((1, 2)))))
        return self.head(nnx.relu(self.low_rank(nnx.relu(self.einsum(x)))))


def test_other_layers():
    model, _, small = check_agrees(filled(Layers), normal(2, 4, 4, 3))
    assert len(model.groups) >= 7
    assert small.depthwise.feature_group_count == small.up.out_features < 12
    assert small.groups.num_groups * small.groups.group_size == small.mix.out_features


@pytest.mark.parametrize("normalise", [False, True])
def test_scale_of_the_trained_head_size_is_folded_into_the_query(normalise):
    def make(rngs):
        return nnx.MultiHeadAttention(2, 6, 16, normalize_qk=normalise, decode=False, rngs=rngs)

    _, _, small = check_agrees(filled(make), normal(2, 5, 6), where=named("query/kernel:2", "value/kernel:2"))
    assert (small.head_dim, small.num_heads, small.qkv_features) == (5, 2, 10)


@pytest.mark.parametrize("cell", [nnx.OptimizedLSTMCell, nnx.SimpleCell])
def test_other_cells(cell):
    def make(rngs):
        return nnx.Sequential(
            nnx.RNN(cell(4, 10, keep_rngs=False, rngs=rngs), rngs=False), nnx.Linear(10, 3, rngs=rngs)
        )

    def call(module, x):
        rnn, head = module.layers
        return head(rnn(x, rngs=nnx.Rngs(0)))

    _, _, small = check_agrees(filled(make), normal(2, 5, 4), call=call)
    assert small.layers[0].cell.hidden_features == 6


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 10, rngs=rngs), nnx.Linear(10, 3, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(10, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.second(self.dropout(nnx.relu(self.norm(self.first(x)))))


def test_training_steps_with_dropout_and_batch_statistics():
    module, x = Dropped(nnx.Rngs(0)), normal(8, 4)
    module.eval()
    model = adapter.trace(module, x)
    small = adapter.resize(module, model, random_plan(model))
    small.train()
    optimizer = nnx.Optimizer(small, optax.adam(1e-2), wrt=nnx.Param)
    before = np.asarray(small.norm.mean[...])

    @nnx.jit
    def step(module, optimizer, x):
        value, gradients = nnx.value_and_grad(lambda module: jnp.mean((module(x) - 1) ** 2))(module)
        optimizer.update(module, gradients)
        return value

    with jax.numpy_dtype_promotion("standard"):  # for Adam
        losses = [float(step(small, optimizer, x)) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert small.norm.mean.shape == (6,)
    assert not np.array_equal(before, small.norm.mean[...])


def test_orbax_round_trip(tmp_path):
    module, x = filled(zoo.MLP), normal(3, 7)
    model = adapter.trace(module, x)
    plan = random_plan(model)
    small = adapter.resize(module, model, plan)
    (tmp_path / "plan.json").write_text(plan.to_json())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "small", adapter.parameters(small))
        checkpointer.wait_until_finished()
        again = jp.Plan.from_json((tmp_path / "plan.json").read_text())
        fresh = nnx.eval_shape(lambda: zoo.MLP(nnx.Rngs(1)))
        empty = adapter.resize(fresh, adapter.trace(fresh, x), again)
        restored = checkpointer.restore(tmp_path / "small", adapter.parameters(empty))
    state = nnx.state(empty)
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(empty, state)
    np.testing.assert_array_equal(empty(x), small(x))


def error_of(make, *args, where=lambda group: True):
    module = filled(make)
    model = adapter.trace(module, *args)
    with pytest.raises(ValueError) as caught:
        adapter.resize(module, model, random_plan(model, where=where))
    return str(caught.value)


class HardReshape(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(4, 12, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.width = 4

    def __call__(self, x):
        x = self.up(x)
        x = x.reshape(-1, 3, self.width).sum(1)
        return self.down(x)


class Outer(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([HardReshape(rngs)])
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.blocks[0](x))


def test_error_of_a_hard_coded_reshape_names_module_line_and_remedy():
    message = error_of(Outer, normal(2, 4))
    assert message.startswith("blocks/0 (HardReshape) does not fit")
    assert line_of(__file__, "x = x.reshape(-1, 3, self.width).sum(1)") in message
    assert "shrunk_function" in message and "register_resize" in message


def test_a_fixer_of_the_users():
    class Fixed(HardReshape):
        pass

    adapter.register_resize(Fixed, lambda module, layer: {"width": layer.parts("up/kernel", -1, 3)[1]})
    _, _, small = check_agrees(filled(Fixed), normal(2, 4), where=named("down/kernel:0"))
    assert small.width == small.down.in_features == 2


class HandWrittenAttention(nnx.Module):
    def __init__(self, rngs):
        self.query, self.key, self.value = (nnx.Linear(6, 12, rngs=rngs) for _ in range(3))

    def __call__(self, x):
        query, key, value = self.query(x), self.key(x), self.value(x)
        scores = query @ key.swapaxes(1, 2) / query.shape[-1] ** 0.5
        return nnx.softmax(scores) @ value


def test_a_number_that_depends_on_a_size_is_an_error_at_its_line():
    message = error_of(HandWrittenAttention, normal(2, 5, 6), where=named("query/kernel:1"))
    assert "1/sqrt(head size)" in message
    number = line_of(__file__, "scores = query @ key.swapaxes(1, 2) / query.shape[-1] ** 0.5").rsplit(":", 1)[1]
    assert f"test_nnx.py:{number}" in message


class WithArrays(nnx.Module):
    """Arrays that are no Variables: one is cut, the other is not."""

    def __init__(self, rngs):
        self.attention = HandWrittenAttention(rngs)
        self.scale = jnp.linspace(1.0, 2.0, 12)
        self.mask = jnp.tril(jnp.ones((5, 5)))
        self.head = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.mask[None] @ (self.attention(x) * self.scale[None, None]))


def test_arrays_that_are_no_variables():
    module = WithArrays(nnx.Rngs(0))
    model, _, small = check_agrees(module, normal(2, 5, 6), where=named("attention/value/kernel:1"))
    assert small.scale.shape == (small.head.in_features,) == (7,)
    assert (module.scale.shape, small.mask.shape) == ((12,), (5, 5))
    # The array that stays does not keep the values from being compared.
    with pytest.raises(ValueError, match=r"1/sqrt\(head size\)"):
        adapter.resize(module, model, random_plan(model, where=named("attention/query/kernel:1")))


def test_weight_norm():
    def make(rngs):
        normed = nnx.WeightNorm(nnx.Linear(4, 10, rngs=rngs), rngs=rngs)
        return nnx.Sequential(normed, nnx.relu, nnx.Linear(10, 3, rngs=rngs))

    check_agrees(make(nnx.Rngs(0)), normal(2, 4))


def test_random_numbers_are_not_compared_and_a_warning_says_so():
    module, x = Dropped(nnx.Rngs(0)), normal(8, 4)
    model = adapter.trace(module, x)
    with pytest.warns(UserWarning, match="only shapes were compared, because the traced function draws random numbers"):
        adapter.resize(module, model, random_plan(model))


def test_traced_parameters_that_the_module_has_not_are_named():
    module, x = filled(zoo.MLP), normal(3, 7)
    graph, state = nnx.split(module)

    def apply(params, x):
        return nnx.merge(graph, params["net"])(x) * params["temperature"]

    model = jp.trace(apply, {"net": nnx.to_pure_dict(state), "temperature": jnp.ones(())}, x)
    with pytest.warns(UserWarning, match="only shapes were compared, because temperature of the traced"):
        adapter.resize(module, model, random_plan(model))


def test_another_module_than_the_traced_one_is_an_error():
    model = adapter.trace(filled(zoo.MLP), normal(3, 7))
    with pytest.raises(ValueError, match=r"none of the module's arrays was traced"):
        adapter.resize(nnx.Embed(2, 3, rngs=nnx.Rngs(0)), model, random_plan(model))
    with pytest.raises(ValueError, match="may be any of first/kernel, head/kernel, second/kernel"):
        adapter.resize(nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0)), model, random_plan(model))
    module = filled(zoo.MLP)
    module.head = nnx.Linear(10, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"head/bias has shape \(4,\), but was traced with \(5,\)"):
        adapter.resize(module, model, random_plan(model))
