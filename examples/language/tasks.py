"""What is pruned in `one_shot_transformer.py`, and how its quality is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from examples.data import sentences
from examples.language import training
from examples.language.evaluation import make_evaluator
from examples.models import minilm, transformer

PyTree = Any


@dataclass(frozen=True)
class Task:
    """A model to prune.

    Attributes:
      name: for tables and files.
      source: where the model and its data come from.
      apply_fn: the function.
      params: its dense parameters.
      where: the paths that are pruned.
      batches: calibration batches for a seed, as `jp.prune_sequential` takes them.
      weights: what each row of a batch counts for, or None.
      measure: parameters to metrics; the first is the one that is plotted.
      better: whether more of that metric is better or less.
    """

    name: str
    source: str
    apply_fn: Callable[..., Any]
    params: PyTree
    where: str
    batches: Callable[[int], list[Any]]
    weights: Callable[..., jax.Array] | None
    measure: Callable[[PyTree], dict[str, float]]
    better: Literal["higher", "lower"]

    @property
    def slug(self) -> str:
        """Its name, for files."""
        return self.name.replace(" ", "_")


def language_model(config: training.Config, folder: Path, data_dir: Path | None, samples: int, windows: int) -> Task:
    """The decoder that is trained here, and its perplexity on files that it has not seen."""
    model, params, data = training.train_or_load(config, folder, data_dir)
    apply_fn = training.make_apply(model)
    quality = make_evaluator(apply_fn, data, "test", config.context, windows)
    size = 32

    def measure(params: PyTree) -> dict[str, float]:
        found = quality(params)
        return {"perplexity": found.perplexity, "bits per byte": found.bits_per_byte}

    return Task(
        "language model",
        f"{data.source}; {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters, trained here",
        apply_fn,
        params,
        transformer.PRUNABLE,
        lambda seed: training.calibration_batches(data, samples // size, size, config.context, seed),
        None,
        measure,
        "lower",
    )


def sentence_encoder(data_dir: Path | None, samples: int, held_out: int) -> Task:
    """all-MiniLM-L6-v2: how near its embeddings stay to the dense ones, and whether they still find the right text."""
    apply_fn, params, tokenizer = minilm.load_minilm(data_dir)
    apply = jax.jit(apply_fn)
    pairs = sentences.held_out_pairs(held_out)
    queries = minilm.encode(tokenizer, [pair.summary for pair in pairs])
    texts = minilm.encode(tokenizer, [pair.explanation for pair in pairs])
    dense = np.asarray(apply(params, *queries))

    def measure(params: PyTree) -> dict[str, float]:
        mine, theirs = np.asarray(apply(params, *queries)), np.asarray(apply(params, *texts))
        found = (mine @ theirs.T).argmax(1) == np.arange(len(pairs))
        return {"cosine to dense": float((mine * dense).sum(1).mean()), "recall@1": float(found.mean())}

    def batches(seed: int) -> list[Any]:
        chosen = np.random.default_rng(seed).permutation(np.array(sentences.calibration_sentences(max(samples, 800))))
        ids, mask = minilm.encode(tokenizer, chosen[:samples].tolist())
        return [(ids[k : k + 64], mask[k : k + 64]) for k in range(0, samples - samples % 64, 64)]

    return Task(
        "all-MiniLM-L6-v2",
        f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} pretrained parameters; docstrings",
        apply_fn,
        params,
        minilm.PRUNABLE,
        batches,
        lambda ids, mask: jnp.asarray(mask, jnp.float32),
        measure,
        "higher",
    )
