"""The pretrained sentence encoder of the examples and the sentences for it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.data import sentences, sources
from examples.models import minilm

SMALL = minilm.MiniLM(vocabulary=50, positions=12, width=16, depth=1, heads=4, hidden=24)


@pytest.fixture(scope="module")
def pretrained() -> minilm.Pretrained:
    try:
        return minilm.load_minilm()
    except sources.SourceError as error:
        pytest.skip(f"the weights of all-MiniLM-L6-v2 are not here: {error}")


def test_similarities_are_the_published_ones(pretrained: minilm.Pretrained):
    # What sentence-transformers gives for the example of the model's page, as printed in many tutorials.
    said = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    x = jax.jit(pretrained.apply)(pretrained.params, *minilm.encode(pretrained.tokenizer, said, 16))
    np.testing.assert_allclose(x[0] @ x[1:].T, [0.6945773, 0.9429151, 0.2568761], atol=2e-5)
    np.testing.assert_allclose(jnp.linalg.norm(x, axis=1), 1.0, atol=1e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(pretrained.params)) == 22_565_376


def test_padding_does_not_matter():
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 50, (3, 9)), jnp.int32)
    mask = (jnp.arange(9)[None, :] < jnp.array([9, 4, 0])[:, None]).astype(jnp.int32)
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), ids, mask)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)
    apply = jax.jit(SMALL.apply)
    x, other = apply(params, ids, mask), apply(params, jnp.where(mask == 1, ids, 7), mask)
    np.testing.assert_array_equal(x, other)
    assert not np.allclose(x, apply(params, jnp.where(mask == 1, 7, ids), mask))
    np.testing.assert_array_equal(x[2], 0.0)  # no token, no direction; and no NaN


def test_weights_of_another_model_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"lack 'embeddings\.word_embeddings\.weight'"):
        minilm.params_from_torch({"embeddings.position_ids": np.arange(3)})
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        minilm.load_minilm(tmp_path)


def test_docstrings_become_pairs():
    source = '''"""Reads the files of a folder.

    Each file is opened once, in the order of the names.

    More."""
def f():
    """f(x) -> y

    A signature is no sentence."""
class C:
    """Keeps what was read\n    until it is asked for.\n\n    :param x: no prose"""
'''
    assert list(sentences.docstring_pairs(source)) == [
        ("Reads the files of a folder.", "Each file is opened once, in the order of the names."),
        ("Keeps what was read until it is asked for.", ""),
    ]
    assert list(sentences.docstring_pairs("def (:")) == []


def test_sentences_are_split_by_file():
    calibration, held_out = sentences.calibration_sentences(400), sentences.held_out_sentences(300)
    assert len(set(calibration)) == 400 and len(set(held_out)) == 300 and set(calibration).isdisjoint(held_out)
    assert all(pair.summary and pair.explanation for pair in sentences.held_out_pairs(128))
    with pytest.raises(ValueError, match="n is 0"):
        sentences.calibration_sentences(0)
