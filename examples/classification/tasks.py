"""What there is to learn: image sets with their models, recipes and feeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx

from examples.classification.training import Apply, Feed, MemoryFeed, StreamFeed
from examples.data import imagenet, images
from examples.models import cnn, resnet

PyTree = Any
Framework = Literal["linen", "nnx"]


@dataclass(frozen=True)
class Recipe:
    """Defaults for one image set.

    Attributes:
      steps: length of the training.
      batch_size: images a step.
      learning_rate: at its peak.
      model: one of `MODELS`.
      optimizer: `adam`, or `sgd` with momentum and weight decay.
    """

    steps: int
    batch_size: int
    learning_rate: float
    model: str = "cnn"
    optimizer: Literal["adam", "sgd"] = "adam"


RECIPES: Mapping[str, Recipe] = {
    "mnist_5k": Recipe(steps=800, batch_size=32, learning_rate=3e-3),
    "mnist": Recipe(steps=3_000, batch_size=128, learning_rate=2e-3),
    "fashion_mnist": Recipe(steps=3_000, batch_size=128, learning_rate=2e-3),
    "cifar10": Recipe(steps=10_000, batch_size=128, learning_rate=1e-3),
    # 90 epochs at a batch of 256; the learning rate of Goyal et al. for that batch.
    "imagenet": Recipe(450_000, 256, 0.1, model="resnet50", optimizer="sgd"),
}
MODELS = ("cnn", "resnet8", "resnet50")  # resnet8 is for trying things out


@dataclass(frozen=True)
class Task:
    """A model on an image set.

    Attributes:
      name: of the image set.
      source: where the images came from.
      init: a key to fresh parameters.
      apply: parameters and images to logits.
      feed: brings the images.
      where: regular expression of the parameters that may be pruned.
      classes: number of labels.
    """

    name: str
    source: str
    init: Callable[[jax.Array], PyTree]
    apply: Apply
    feed: Feed
    where: str
    classes: int


def make_task(
    dataset: str,
    data_dir: Path | None,
    model: str,
    framework: Framework,
    batch_size: int,
    image_size: int,
) -> Task:
    """Loads an image set and makes its model.

    Args:
      dataset: one of `RECIPES`.
      data_dir: a file or folder that the user names, or `None`.
      model: one of `MODELS`.
      framework: `linen`, or `nnx` (the CNN only).
      batch_size: images a step.
      image_size: side of the crops; for `imagenet` only.

    Raises:
      ValueError: for names that do not fit together.
    """
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}; allowed: {', '.join(MODELS)}")
    if framework == "nnx" and model != "cnn":
        raise ValueError(f"--framework nnx has the model cnn only, got {model}; use linen")
    feed: Feed
    if dataset == "imagenet":
        streamed = imagenet.load(data_dir)
        shape, classes, source = (image_size, image_size, 3), streamed.classes, streamed.source
        feed = StreamFeed(streamed, batch_size, image_size)
    else:
        data = images.load(dataset, data_dir)
        height, width, channels = data.train_x.shape[1:]
        shape, classes, source = (height, width, channels), data.classes, data.source
        feed = MemoryFeed(data, batch_size)
    where = cnn.PRUNABLE if model == "cnn" else resnet.PRUNABLE
    init, apply = (_linen if framework == "linen" else _nnx)(model, shape, classes)
    return Task(dataset, source, init, apply, feed, where, classes)


def without_head(where: str) -> str:
    """Leaves the output layer out: its channels are the classes, which no one wants pruned."""
    return rf"(?!head/)({where})"


def make_inner(recipe: Recipe, steps: int, learning_rate: float) -> optax.GradientTransformation:
    """The optimiser that is wrapped: a cosine decay to zero, after a warm-up for SGD."""
    if recipe.optimizer == "adam":
        return optax.adam(optax.cosine_decay_schedule(learning_rate, max(1, steps)))
    warm = max(1, steps // 18)  # 5 epochs of 90
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warm, max(warm + 1, steps))
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(schedule, momentum=0.9, nesterov=True))


def _linen(model: str, shape: tuple[int, int, int], classes: int) -> tuple[Callable[[jax.Array], PyTree], Apply]:
    """Parameters and function of a Linen model."""
    if model == "cnn":
        module: nn.Module = cnn.LinenCNN(classes)
    elif model == "resnet8":
        module = resnet.ResNet(classes, stages=(1, 1), width=16, groups=16)
    else:
        module = resnet.ResNet(classes)

    @jax.jit
    def init(key: jax.Array) -> PyTree:
        return module.init(key, jnp.zeros((1, *shape)))["params"]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        return module.apply({"params": params}, x)  # pyright: ignore[reportReturnType]

    return init, apply


def _nnx(model: str, shape: tuple[int, int, int], classes: int) -> tuple[Callable[[jax.Array], PyTree], Apply]:
    """Parameters (a pure `nnx.State`: arrays without their variables) and function of an NNX model."""
    del model

    def fresh(key: jax.Array) -> cnn.NNXCNN:
        return cnn.NNXCNN(shape, classes, nnx.Rngs(key))

    def is_variable(node: Any) -> bool:
        return isinstance(node, nnx.Variable)

    @jax.jit
    def init(key: jax.Array) -> PyTree:
        state = nnx.state(fresh(key), nnx.Param)
        return jax.tree.map(lambda variable: variable.get_value(), state, is_leaf=is_variable)

    graph = nnx.graphdef(nnx.eval_shape(lambda: fresh(jax.random.key(0))))

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(x)

    return init, apply
