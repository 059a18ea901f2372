"""Structured pruning against Torch-Pruning: time to plan, what is left, latency, and models that are hard to read.

Run: python tests/benchmarks/shrinking.py [--ratio 0.25] [--repetitions 5] [--plans 2] [--only ResNet-50]

Without PyTorch and Torch-Pruning our own figures are printed alone. For the comparison, in an environment with
jaxprune and its `test` extra (the CPU build of PyTorch does): pip install torch torch-pruning==1.6.1
"""

import argparse
import dataclasses
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

import jax
import numpy as np
from flax import linen as nn
from timing import medians

import jaxprune as jp
from tests.zoo.models import ZOO, ZooModel
from tests.zoo.models._model import Draw, dense
from tests.zoo.models.large import DenseNet121, ResNet50, abstract
from tests.zoo.models.linen import ResidualBlock

# Else the threads of PyTorch wait by spinning, which slows it down several times where anything else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if importlib.util.find_spec("torch") and importlib.util.find_spec("torch_pruning"):
    import torch_peer
else:
    torch_peer = None


class ResNet56(nn.Module):
    """The residual network of He et al. 2015 for 32 x 32 images, with projected skips."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.BatchNorm(True)(nn.Conv(16, (3, 3), use_bias=False)(x)))
        for stage, width in enumerate((16, 32, 64)):
            for block in range(9):
                x = ResidualBlock(width, width, 2 if stage and not block else 1, False)(x)
        return nn.Dense(10)(x.mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class Architecture:
    module: nn.Module
    size: int
    timed: bool

    def images(self, batch: int) -> jax.Array:
        return jax.random.normal(jax.random.key(1), (batch, self.size, self.size, 3))


ARCHITECTURES = {
    "ResNet-56": Architecture(ResNet56(), 32, True),
    "ResNet-50": Architecture(ResNet50(), 224, True),
    "DenseNet-121": Architecture(DenseNet121(), 224, False),
}
BATCHES = (1, 16)


def raw_parameter() -> ZooModel:
    """A multilayer perceptron whose middle layer is a parameter of its own."""
    draw = Draw(0)
    params = {"first": draw.dense(7, 12), "middle": draw.weight(12, 10), "classifier": draw.dense(10, 5)}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return dense(params["classifier"], jax.nn.relu(jax.nn.relu(dense(params["first"], x)) @ params["middle"]))

    return ZooModel("raw_parameter", apply, params, (draw.normal(3, 7),))


class Shuffled(nn.Module):
    """Two convolutions with a channel shuffle between them and no split."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(16, (3, 3), use_bias=False)(x))
        x = x.reshape(*x.shape[:3], 2, x.shape[3] // 2).swapaxes(3, 4).reshape(x.shape)
        return nn.Dense(5)(nn.relu(nn.Conv(20, (3, 3), use_bias=False)(x)).mean((1, 2)))


def channel_shuffle() -> ZooModel:
    draw = Draw(1)
    args = (draw.normal(2, 8, 8, 3),)
    return ZooModel("channel_shuffle", Shuffled().apply, draw.like(abstract(Shuffled(), *args)), args)


HARD = {
    "MLP (control)": ZOO["linen_mlp"],
    "LSTM": ZOO["linen_lstm"],
    "GRU": ZOO["linen_gru"],
    "raw parameter": raw_parameter,
    "channel shuffle": channel_shuffle,
    "ShuffleNet v2 units": ZOO["shufflenet"],
}


@dataclasses.dataclass(frozen=True)
class Pruned:
    model: jp.Model
    plan: jp.Plan
    small: Any
    read: float
    cut: float


def prune(apply_fn: Callable[..., Any], params: Any, args: tuple[Any, ...], ratio: float) -> Pruned:
    """Ours: trace; then scores, selection and the smaller parameters; with the seconds that both took."""
    start = time.perf_counter()
    # A function of its own, so that JAX does not find an earlier trace.
    model = jp.trace(lambda *given: apply_fn(*given), params, *args)
    traced = time.perf_counter()
    scores = jp.group_scores(model, params, jp.scores.magnitude, power=2)
    plan = jp.select(model, scores, ratio, scope="local")
    small = jax.block_until_ready(jp.shrink(model, plan, params))
    return Pruned(model, plan, small, traced - start, time.perf_counter() - traced)


def parameters(cost: jp.Cost) -> int:
    """Without the statistics of batch normalisation, which PyTorch does not count."""
    statistics = ("mean", "var", "variance")
    return sum(each.parameters for path, each in cost.per_path.items() if path.split("/")[-1] not in statistics)


def plan_all(name: str, arguments: argparse.Namespace) -> tuple[Any, Pruned, Any, Any]:
    """Prints the time to plan and what is left; returns the parameters, ours, and PyTorch's before and after."""
    architecture = ARCHITECTURES[name]
    variables = Draw(0).like(abstract(architecture.module, architecture.images(1)))
    peer = torch_peer and torch_peer.build(name)
    ours, theirs, times = None, None, {"jaxprune": [], "Torch-Pruning": []}
    for _ in range(1 + arguments.plans):
        ours = prune(architecture.module.apply, variables, (architecture.images(1),), arguments.ratio)
        times["jaxprune"].append((ours.read, ours.cut))
        if peer:
            theirs, *seconds = torch_peer.prune(peer, torch_peer.images(1, architecture.size), arguments.ratio)
            times["Torch-Pruning"].append(seconds)
    before, after = ours.model.cost(), ours.model.cost(plan=ours.plan)
    sizes = {"jaxprune": (parameters(before), parameters(after), before.macs, after.macs)}
    if peer:
        example = torch_peer.images(1, architecture.size)
        counts = [count(each, example) for count in (torch_peer.count, torch_peer.macs) for each in (peer, theirs)]
        sizes["Torch-Pruning"] = tuple(counts)
    base = None
    for library, (full, left, full_macs, left_macs) in sizes.items():
        first, again = sum(times[library][0]), np.median(np.sum(times[library][1:], 1))
        read, cut = np.median(times[library][1:], 0)
        base = base or (first, again)
        print(
            f"{name:14s}{library:15s}{first:8.2f}{first / base[0]:7.2f}{again:9.2f}{again / base[1]:7.2f}{read:8.2f}"
            f"{cut:8.2f}{full / 1e6:10.3f}{left / 1e6:8.3f}{full_macs / 1e9:8.3f}{left_macs / 1e9:7.3f}"
            f"{left_macs / full_macs:7.3f}",
            flush=True,
        )
    return variables, ours, peer, theirs


def time_all(name: str, found: tuple[Any, Pruned, Any, Any], repetitions: int) -> None:
    """Prints the latency of the dense and of the pruned model; each library by itself, dense and pruned in turn."""
    architecture, (variables, ours, peer, theirs) = ARCHITECTURES[name], found
    whole = jax.jit(architecture.module.apply)
    for batch in BATCHES:
        x = architecture.images(batch)
        model = jp.trace(architecture.module.apply, variables, x)
        smaller = jax.jit(jp.shrunk_function(model, ours.plan))
        pairs = {
            "jaxprune": {
                "dense": functools.partial(whole, variables, x),
                "pruned": functools.partial(smaller, ours.small, x),
            }
        }
        if peer:
            example = torch_peer.images(batch, architecture.size)
            models = {"dense": peer, "pruned": theirs}
            pairs["Torch-Pruning"] = {key: torch_peer.runner(model, example) for key, model in models.items()}
        for library, pair in pairs.items():
            times = medians(pair, repetitions)
            dense_time, pruned_time = times["dense"] * 1e3, times["pruned"] * 1e3
            print(
                f"{name:14s}{batch:5d}  {library:15s}{dense_time:10.1f}{pruned_time:10.1f}"
                f"{dense_time / pruned_time:9.2f}",
                flush=True,
            )


def try_hard(name: str, ratio: float) -> None:
    """Prints what becomes of a model that is hard to read."""
    model = HARD[name]()
    ours = prune(model.apply_fn, model.params, model.args, ratio)
    before, after = parameters(ours.model.cost()), parameters(ours.model.cost(plan=ours.plan))
    error = float(jp.verify(ours.model, ours.plan, model.params, *model.args, strict=True))
    words = f"{len(ours.model.groups)} groups, differs from the masked model by {error:.0e}"
    print(f"{name:21s}{'jaxprune':15s}{before:7d}{after:7d}  {words}")
    if torch_peer:
        words, before, after = torch_peer.attempt(name, ratio)
        print(f"{name:21s}{'Torch-Pruning':15s}{before:7d}{after:7d}  {words}")


def main() -> None:
    """Prints three tables, all measured in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--plans", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(ARCHITECTURES))
    arguments = parser.parse_args()
    names = [name for name in ARCHITECTURES if not arguments.only or name in arguments.only]
    print(
        f"{arguments.ratio:.0%} of the indices of every group by magnitude; jaxprune {jp.__version__}, "
        f"JAX {jax.__version__} on {jax.devices()[0].platform}, {os.cpu_count()} cores; "
        f"{torch_peer.NAME if torch_peer else 'Torch-Pruning is not installed (see --help)'}; measured"
    )
    print(
        "\nSeconds to read the model, to choose and to cut: the first time (ours compiles then) and the median of "
        f"{arguments.plans} later\ntimes, with ratios to ours (above 1 is slower); MACs by each library's own counter"
    )
    print(
        f"{'':29s}{'first':>8s}{'ratio':>7s}{'later':>9s}{'ratio':>7s}{'read':>8s}{'cut':>8s}{'params M':>10s}"
        f"{'left':>8s}{'MACs G':>8s}{'left':>7s}{'share':>7s}"
    )
    found = {name: plan_all(name, arguments) for name in names}
    print(f"\nLatency in ms, medians of {arguments.repetitions} dense and pruned in turn (jax.jit; PyTorch eager)")
    print(f"{'':14s}{'batch':>5s}{'':17s}{'dense':>10s}{'pruned':>10s}{'speed-up':>9s}")
    for name in names:
        if ARCHITECTURES[name].timed:
            time_all(name, found[name], arguments.repetitions)
    print("\nModels of kinds that Torch-Pruning has open issues on, in both libraries without any hint")
    print(f"{'':36s}{'params':>7s}{'left':>7s}")
    for name in HARD:
        try_hard(name, arguments.ratio)


if __name__ == "__main__":
    main()
