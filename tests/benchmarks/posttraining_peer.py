"""The authors' PyTorch code of SparseGPT and Wanda, run as it is from checkouts of their repositories.

git clone https://github.com/IST-DASLab/sparsegpt; git clone https://github.com/locuslab/wanda
Measured and recorded with commits 147d215 and 8e8fc87. Neither is copied here: what they import beside PyTorch, and
do not need for one layer, is replaced by empty modules.
"""

import contextlib
import importlib
import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch


def _empty(name: str, **names: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(names)
    sys.modules.setdefault(name, module)


def load_sparsegpt(checkout: Path) -> Any:
    """The module `sparsegpt.py`, which needs no GPU any more."""
    _empty("transformers", Conv1D=type("Conv1D", (), {}))
    _empty("quant")
    torch.cuda.synchronize = lambda *_: None
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module("sparsegpt")
    finally:
        sys.path.remove(str(checkout))


def load_wanda(checkout: Path) -> Any:
    """The module `lib/prune.py`."""
    _empty("transformers", Conv1D=type("Conv1D", (), {}))
    _empty("datasets", load_dataset=None)
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module("lib.prune")
    finally:
        sys.path.remove(str(checkout))


def linear(weights: np.ndarray) -> torch.nn.Linear:
    layer = torch.nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(np.array(weights))
    return layer


def sparsegpt(
    module: Any, weights: np.ndarray, gram: np.ndarray, sparsity: float, pattern: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """The weights after the authors' `fasterprune`; `pattern` is theirs, pruned of each group."""
    pruner = module.SparseGPT(linear(weights))
    pruner.H = torch.from_numpy(np.array(gram))
    with contextlib.redirect_stdout(io.StringIO()):
        pruner.fasterprune(sparsity, *pattern)
    return pruner.layer.weight.data.numpy()


def wanda(
    module: Any, weights: np.ndarray, inputs: np.ndarray, sparsity: float, pattern: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """The weights after the authors' `prune_wanda`, of a model that is one linear layer."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear(weights)

        def forward(self, x: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
            return (self.linear(x),)

    block = Block()
    layers = types.SimpleNamespace(layers=[block])
    model = types.SimpleNamespace(
        model=layers, hf_device_map={}, seqlen=len(inputs), config=types.SimpleNamespace(use_cache=False)
    )
    given = torch.from_numpy(np.array(inputs))[None]
    module.get_loaders = lambda *_, **__: (None, None)
    module.prepare_calibration_input = lambda *_: (given, torch.zeros(1, len(inputs), len(weights)), None, None)
    options = types.SimpleNamespace(nsamples=1, seed=0, sparsity_ratio=sparsity, use_variant=False)
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        module.prune_wanda(options, model, None, torch.device("cpu"), *pattern)
    return block.linear.weight.data.numpy()
