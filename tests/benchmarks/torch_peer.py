"""Torch-Pruning as its README uses it, for `shrinking.py`. It must be imported only where both are installed."""

import copy
import importlib.metadata
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch_models
import torch_pruning
from torch import nn

NAME = (
    f"Torch-Pruning {importlib.metadata.version('torch-pruning')}, PyTorch {torch.__version__}, "
    f"{torch.get_num_threads()} threads"
)


def images(batch: int, size: int) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return torch_models.MODELS[name]().eval()


def classifier(module: nn.Module) -> nn.Module:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]


def make_pruner(module: nn.Module, example: torch.Tensor, ratio: float) -> Any:
    return torch_pruning.pruner.MagnitudePruner(
        module,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[classifier(module)],
    )


def prune(module: nn.Module, example: torch.Tensor, ratio: float) -> tuple[nn.Module, float, float]:
    """A pruned copy, and the seconds that building the pruner and its step took."""
    module = copy.deepcopy(module)
    start = time.perf_counter()
    pruner = make_pruner(module, example, ratio)
    built = time.perf_counter()
    pruner.step()
    return module, built - start, time.perf_counter() - built


def count(module: nn.Module, example: torch.Tensor | None = None) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def macs(module: nn.Module, example: torch.Tensor) -> int:
    return int(torch_pruning.utils.count_ops_and_params(module, example)[0])


def runner(module: nn.Module, example: torch.Tensor) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        with torch.inference_mode():
            return module(example)

    return run


def attempt(name: str, ratio: float) -> tuple[str, int, int]:
    """What becomes of a hard model: in words, and its parameters before and after."""
    make, shape = torch_models.HARD[name]
    torch.manual_seed(0)
    module, example = make().eval(), torch.randn(shape)
    masked, before, stage = copy.deepcopy(module), count(module), "the dependency graph"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pruner = make_pruner(module, example, ratio)
            stage = "step()"
            for group in pruner.step(interactive=True):
                mask_outputs(module, masked, group)
                group.prune()
            stage = "the pruned model"
            output = runner(module, example)()
        except Exception as error:
            return f"{stage} raises {type(error).__name__}: {' '.join(str(error).split())[:60]}", before, count(module)
    if count(module) == before:
        said = [str(warning.message).split(":")[0] for warning in caught]
        return f"nothing removed, {f'warns: {said[0]}' if said else 'and no message'}", before, before
    expected = runner(masked, example)()
    error = float((output - expected).abs().max() / expected.abs().max())
    return f"differs from the masked model by {error:.0e}", before, count(module)


def mask_outputs(module: nn.Module, masked: nn.Module, group: Any) -> None:
    """Zeroes, in a full copy, what makes the indices that are about to be cut."""
    names = {layer: name for name, layer in module.named_modules()}
    for dependency, indices in group:
        layer = dependency.target.module
        makes = isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d)
        if layer in names and makes and dependency.handler.__name__ == "prune_out_channels":
            for parameter in masked.get_submodule(names[layer]).parameters(recurse=False):
                parameter.data[indices] = 0
