"""The language model of the examples: its mathematics, its training on a made corpus, its evaluation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from examples.data import text
from examples.language import evaluation, training
from examples.models import transformer

TINY = training.Config(
    vocabulary=300, width=16, depth=1, heads=2, hidden=24, context=16, steps=6, batch_size=2, evaluation_windows=5,
    checkpoint_every=2,
)  # fmt: skip
DEEPER = replace(TINY, depth=2)


pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.fixture(scope="module")
def data(corpus: Path) -> text.TextData:
    return text.load(corpus, TINY.vocabulary)


@pytest.fixture(scope="module")
def params() -> Any:
    """Made weights of the model, as `init` would lay them out."""
    shapes = jax.eval_shape(training.make_model(DEEPER).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 3, leaf.dtype), shapes)


def test_stacked_blocks_compute_the_same(params: Any):
    model, tokens = training.make_model(DEEPER), jnp.arange(12).reshape(2, 6)
    stacked = transformer.stack_blocks(params)
    there_and_back = transformer.unstack_blocks(stacked)
    assert jax.tree.structure(there_and_back) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, there_and_back, params)))
    looped = jax.jit(training.make_apply(training.make_model(DEEPER, scan=True)))(stacked, tokens)
    np.testing.assert_allclose(looped, jax.jit(training.make_apply(model))(params, tokens), atol=1e-5)


def test_the_model_is_causal_and_sees_order(params: Any):
    apply = jax.jit(training.make_apply(training.make_model(DEEPER)))
    tokens = jnp.arange(10)[None, :]
    logits = apply(params, tokens)
    later = apply(params, tokens.at[0, 7].set(200))
    np.testing.assert_array_equal(logits[:, :7], later[:, :7])
    assert not np.allclose(logits[:, 7:], later[:, 7:])
    swapped = apply(params, tokens.at[0, 1].set(2).at[0, 2].set(1))
    assert not np.allclose(logits[:, 5], swapped[:, 5], atol=1e-6)


def test_jaxprune_reads_every_layer(params: Any):
    traced = jp.trace(training.make_apply(training.make_model(DEEPER)), params, jnp.zeros((1, 8), jnp.int32))
    sites = [site.path for site in traced.sites]
    assert len(sites) == 7 * DEEPER.depth + 2  # the linear layers, the embedding and the head
    masks = jp.compute_masks(params, 0.5, where=transformer.PRUNABLE)
    pruned = [path for path, mask in jp.trees.leaves_with_paths(masks) if mask.ndim]
    assert len(pruned) == 7 * DEEPER.depth and set(pruned) < set(sites)


def test_training_is_kept_and_goes_on_where_it_stopped(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = training.train_or_load(TINY, tmp_path / "whole", corpus)
    result = training.read_result(tmp_path / "whole")
    assert result["steps_measured"] == TINY.steps and 1 < result["test"]["perplexity"] < 2 * TINY.vocabulary
    assert result["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(whole.params))

    step = training._make_step(TINY)

    def stopping(state: Any, key: Any, number: Any, tokens: Any) -> Any:
        if int(number) == 5:
            raise KeyboardInterrupt
        return step(state, key, number, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_make_step", lambda config: stopping)
        with pytest.raises(KeyboardInterrupt):
            training.train_or_load(TINY, tmp_path / "part", corpus)
    with pytest.raises(FileNotFoundError, match="no trained model"):
        training.read_result(tmp_path / "part")
    resumed = training.train_or_load(TINY, tmp_path / "part", corpus)
    assert training.read_result(tmp_path / "part")["steps_measured"] == 2  # from the checkpoint after step 4

    monkeypatch.setattr(training, "_train", None)
    loaded = training.train_or_load(TINY, tmp_path / "whole", corpus)
    for other in (resumed, loaded):
        assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, whole.params, other.params)))
    with pytest.raises(ValueError, match="width: 16 then, 32 now"):
        training.train_or_load(replace(TINY, width=32), tmp_path / "whole", corpus)


def test_perplexity_of_a_model_that_knows_nothing(data: text.TextData):
    def uniform(params: None, tokens: jax.Array) -> jax.Array:
        return jnp.zeros((*tokens.shape, TINY.vocabulary))

    quality = evaluation.make_evaluator(uniform, data, "test", 16, batch_size=4)(None)
    assert quality.perplexity == pytest.approx(TINY.vocabulary, rel=1e-5)
    windows = (len(data.test) - 1) // 16
    predicted = data.test[1 : 1 + 16 * windows]
    assert quality.tokens == predicted.size
    size = len(data.tokenizer.decode(predicted.tolist(), skip_special_tokens=True).encode())
    assert quality.bits_per_byte == pytest.approx(quality.tokens * np.log2(TINY.vocabulary) / size, rel=1e-5)
    assert quality.byte_perplexity == pytest.approx(2**quality.bits_per_byte)


def test_windows_predict_each_token_once():
    windows = evaluation.cut(np.arange(23), 5)
    np.testing.assert_array_equal(windows[:, 1:].ravel(), np.arange(1, 21))
    np.testing.assert_array_equal(evaluation.cut(np.arange(23), 5, limit=2), windows[[0, 2]])
    with pytest.raises(ValueError, match="5 tokens do not fill a window of 6"):
        evaluation.cut(np.arange(5), 5)


def test_calibration_batches_come_from_the_training_text(data: text.TextData):
    batches = training.calibration_batches(data, count=3, batch_size=2, context=8)
    assert [batch.shape for batch in batches] == [(2, 8)] * 3
    whole = np.lib.stride_tricks.sliding_window_view(data.train, 8)
    assert all((whole == np.asarray(row)).all(axis=1).any() for batch in batches for row in batch)


def test_corpus_is_split_by_file(data: text.TextData, corpus: Path):
    files = dict(text.read_files(corpus))
    for split in text.SPLITS:
        own = [content for name, content in files.items() if text.split_of(name) == split]
        assert data.tokenizer.decode(data.tokens(split).tolist(), skip_special_tokens=True) == "".join(own)
        assert data.token_bytes[data.tokens(split)].sum() == len("".join(own).encode())
        end = data.tokenizer.token_to_id(text.END_OF_FILE)
        assert (data.tokens(split) == end).sum() == len(own)
    assert text.load(corpus, TINY.vocabulary).fingerprint() == data.fingerprint()
    with pytest.raises(ValueError, match="tokens only"):
        text.load(corpus, 50_000)
    with pytest.raises(ValueError, match="257 or more"):
        text.load(corpus, 256)
    with pytest.raises(ValueError, match="no text for"):
        text.load(corpus / "nothing", 300)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("abc.py", True),
        ("asyncio/events.py", True),
        ("unittest/test/x.py", False),
        ("site-packages/flax/core.py", False),
        ("_sysconfigdata__linux_x86_64-linux-gnu.py", False),
        ("LICENSE.txt", False),
        ("testing_is_fine.py", True),
    ],
)
def test_what_of_the_standard_library_is_read(tmp_path: Path, name: str, read: bool):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x = 1\n")
    assert [found for found, _ in text.read_files(tmp_path, text.LEFT_OUT)] == [name] * read
