"""The recurrent models of the speech example, and Silero VAD against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from examples.data import sources
from examples.data.speech import Utterances
from examples.models import recurrent, silero
from examples.speech import clips, hidden_units, tasks, vad


def drawn(shapes, seed: int = 0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def padded() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Utterances, lengths, the same with other values in the padding, and with more padding."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 4)), jnp.float32)
    lengths = jnp.array([6, 3, 1], jnp.int32)
    other = jnp.where(recurrent.valid_steps(lengths, 6)[:, :, None], x, 9.0)
    return x, lengths, other, jnp.concatenate([other, jnp.full((3, 2, 4), 7.0)], axis=1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_padding_changes_no_class(cell: recurrent.Cell) -> None:
    x, lengths, other, longer = padded()
    classifier = recurrent.Classifier(5, cell, (7,))
    params = drawn(jax.eval_shape(classifier.init, jax.random.key(0), x, lengths))
    apply = jax.jit(classifier.apply)
    logits = np.asarray(apply(params, x, lengths))
    assert logits.shape == (3, 5)
    np.testing.assert_array_equal(logits, apply(params, other, lengths))
    np.testing.assert_allclose(logits, apply(params, longer, lengths), rtol=1e-5)
    assert not np.allclose(logits[1], apply(params, x, lengths - 1)[1])  # the last valid step does matter


def test_padding_changes_no_transcript() -> None:
    x, lengths, _, longer = padded()
    transcriber = recurrent.Transcriber(5, "gru", (7,))
    params = drawn(jax.eval_shape(transcriber.init, jax.random.key(0), x, lengths))
    apply = jax.jit(transcriber.apply)
    outputs, changed = apply(params, x, lengths), apply(params, longer, lengths)
    assert outputs[0].shape == (3, 6, 5)
    assert outputs[1].tolist() == [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]]
    labels = jnp.array([[1, 2], [3, 0], [4, 0]], jnp.int32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        loss = jax.jit(tasks.ctc_loss)
        assert float(loss(outputs, labels)) == pytest.approx(float(loss(changed, labels)), rel=1e-5)


def test_unknown_cell() -> None:
    with pytest.raises(ValueError, match="unknown cell 'rnn'; allowed: lstm, gru"):
        recurrent.cell_class("rnn")  # pyright: ignore[reportArgumentType]


def test_hidden_units_are_one_group_and_the_cut_is_exact() -> None:
    module = recurrent.Classifier(3, "lstm", (8,))
    x, lengths = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 4)), jnp.float32), jnp.array([5, 2])
    params = drawn(jax.eval_shape(module.init, jax.random.key(0), x, lengths))["params"]
    model = jp.trace(lambda p, inputs: module.apply({"params": p}, *inputs), params, (x, lengths))
    assert [group.size for group in model.groups.values()] == [8]
    plan = jp.select(model, jp.group_scores(model, params), 0.5)
    assert jp.verify(model, plan, params, (x, lengths), strict=True).exact
    small = jp.shrink(model, plan, params)
    assert hidden_units.widths_of(params) == (8,) and hidden_units.widths_of(small) == (4,)
    # The module that is built smaller is the shrunk function.
    expected = jp.shrunk_function(model, plan)(small, (x, lengths))
    found = recurrent.Classifier(3, "lstm", (4,)).apply({"params": small}, x, lengths)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # Only recurrent matrices are pruned as single weights.
    assert {
        path for path in jp.trees.paths(params) if jp.trees.compile_pattern(recurrent.PRUNABLE).fullmatch(path)
    } == {path for path in jp.trees.paths(params) if path.endswith("kernel") and not path.startswith("output")}


def test_token_accuracy_counts_edits() -> None:
    assert tasks.decode(np.eye(3)[[1, 1, 0, 1, 2, 2, 0]]) == [1, 1, 2]
    assert tasks.edit_distance([], [1, 2]) == 2 and tasks.edit_distance([1, 2, 3], []) == 3
    assert tasks.edit_distance([3, 1, 2, 5], [1, 2, 4]) == 2
    # Said: 1 2 | 1; true: 1 2 | 2 1: one deletion in four tokens. The last step of the second is padding.
    best = np.array([[1, 0, 2], [1, 0, 2]])
    held = Utterances(np.zeros((2, 3, 1), np.float32), np.array([3, 2], np.int32), np.array([[1, 2], [2, 1]], np.int32))
    paddings = np.array([[0, 0, 0], [0, 0, 1]], np.float32)
    assert tasks.token_accuracy(lambda params, inputs: (np.eye(3)[best], paddings), {}, held) == 0.75


def test_evaluation_sees_every_utterance_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_EVALUATION_BATCH", 4)
    held = Utterances(np.arange(10.0)[:, None, None], np.ones(10, np.int32), np.arange(10) % 2)
    seen: list[int] = []

    def apply_fn(params: None, inputs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        seen.append(len(inputs[0]))
        return inputs[0][:, 0]

    found = tasks.outputs_of(apply_fn, None, held)[0]
    assert found[:, 0].tolist() == list(range(10)) and set(seen) == {4}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silero_by_hand(t: dict[str, np.ndarray], audio: np.ndarray) -> list[float]:
    """One clip, chunk by chunk, in the layout of PyTorch, as the wheel's tinygrad_model.py has it; NumPy loops."""
    h, c, found = np.zeros(128), np.zeros(128), []
    audio = np.concatenate([np.zeros(64), audio])

    def convolve(x: np.ndarray, name: str, stride: int, pad: int) -> np.ndarray:
        weight = t[f"{name}.weight"]
        x = np.pad(x, ((0, 0), (pad, pad)))
        starts = range(0, x.shape[1] - weight.shape[2] + 1, stride)
        return np.stack([np.einsum("oik,ik->o", weight, x[:, s : s + weight.shape[2]]) for s in starts], axis=1)

    for start in range(64, len(audio), 512):
        x = np.pad(audio[start - 64 : start + 512], (0, 64), mode="reflect")[None, :]
        x = convolve(x, "stft_conv", 128, 0)
        x = np.sqrt(x[:129] ** 2 + x[129:] ** 2)
        for k, stride in enumerate((1, 2, 2, 1), start=1):
            x = np.maximum(convolve(x, f"conv{k}", stride, 1) + t[f"conv{k}.bias"][:, None], 0)
        gates = t["lstm_cell.weight_ih"] @ x[:, 0] + t["lstm_cell.weight_hh"] @ h
        i, f, g, o = np.split(gates + t["lstm_cell.bias_ih"] + t["lstm_cell.bias_hh"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        found.append(sigmoid(t["final_conv.weight"][0, :, 0] @ np.maximum(h, 0) + t["final_conv.bias"])[0])
    return found


SILERO_SHAPES = {
    "stft_conv.weight": (258, 1, 256),
    **{f"conv{k}.weight": shape for k, shape in enumerate([(128, 129, 3), (64, 128, 3), (64, 64, 3), (128, 64, 3)], 1)},
    **{f"conv{k}.bias": (size,) for k, size in enumerate((128, 64, 64, 128), 1)},
    "lstm_cell.weight_ih": (512, 128),
    "lstm_cell.weight_hh": (512, 128),
    "lstm_cell.bias_ih": (512,),
    "lstm_cell.bias_hh": (512,),
    "final_conv.weight": (1, 128, 1),
    "final_conv.bias": (1,),
}


def random_silero(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(scale=1 / np.sqrt(np.prod(shape[1:])), size=shape).astype(np.float32)
        for name, shape in SILERO_SHAPES.items()
    }


def test_silero_computes_what_the_description_says() -> None:
    tensors = random_silero()
    audio = np.random.default_rng(1).normal(scale=0.3, size=(2, 4 * 512)).astype(np.float32)
    params = silero.params_from_torch(tensors)
    found = np.asarray(silero.probabilities(params, jnp.asarray(audio)))
    assert found.shape == (2, 4) and found.std() > 1e-3
    for clip, row in zip(audio, found, strict=True):
        np.testing.assert_allclose(row, silero_by_hand(tensors, clip.astype(float)), atol=2e-5)
    # An unfinished chunk is filled with zeros.
    shorter = silero.probabilities(params, jnp.asarray(audio[:, :-100]))
    filled = silero.probabilities(params, jnp.asarray(np.pad(audio[:, :-100], ((0, 0), (0, 100)))))
    np.testing.assert_allclose(shorter, filled, rtol=1e-6)


def test_weights_of_another_network_are_refused() -> None:
    tensors = random_silero()
    with pytest.raises(ValueError, match="1 tensors that Silero VAD has not, such as 'extra'"):
        silero.params_from_torch(tensors | {"extra": np.zeros(1)})
    del tensors["conv3.bias"]
    with pytest.raises(ValueError, match=r"lack 'conv3\.bias'"):
        silero.params_from_torch(tensors)


def test_every_prunable_matrix_of_silero_is_reached() -> None:
    params = silero.params_from_torch(random_silero())
    covered = jp.trace(silero.probabilities, params, jnp.zeros((1, 1024))).coverage().covered
    pattern = jp.trees.compile_pattern(silero.PRUNABLE)
    wanted = {path for path in jp.trees.paths(params) if pattern.fullmatch(path)}
    assert wanted == {f"conv_{k}/kernel" for k in range(1, 5)} | {"lstm/input", "lstm/hidden"}
    assert wanted <= set(covered)
    pruned = vad.prune(params, "random", 0.5, 0, [])
    shares = {
        path: float((leaf == 0).mean())
        for path, leaf in zip(jp.trees.paths(params), jax.tree.leaves(pruned), strict=True)
    }
    assert {path for path, share in shares.items() if share == 0.5} == wanted
    assert shares["output/kernel"] == 0


def test_area_under_roc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    found = rng.integers(0, 5, (4, 9)) / 4
    speech = rng.random((4, 9)) < 0.4
    noise = ~speech & (rng.random((4, 9)) < 0.7)
    pairs = [(a > b) + 0.5 * (a == b) for a in found[speech] for b in found[noise]]
    made = clips.Clips(np.zeros((4, 1)), speech, noise)
    assert vad.area_under_roc(found, made) == pytest.approx(np.mean(pairs))


def test_published_weights_hear_synthetic_speech() -> None:
    try:
        params = silero.load_silero()
        made = clips.make_clips("test", 4, seed=0, seconds=5.0)
    except sources.SourceError as error:
        pytest.skip(f"Silero VAD or espeak-ng is not here: {error}")
    found = np.asarray(jax.jit(silero.probabilities)(params, jnp.asarray(made.audio)))
    assert found[made.speech].mean() > 0.8 and found[made.noise].mean() < 0.2
    assert vad.area_under_roc(found, made) > 0.97
