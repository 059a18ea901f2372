"""Checkpoints as their users write them, and a way to call the command."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

from jaxprune.cli.main import main


@pytest.fixture
def run(capsys):
    """Calls the command; gives its exit code, standard output (parsed with --json) and standard error."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in arguments and out else out, err

    return call


@pytest.fixture(scope="session")
def params():
    rng = np.random.default_rng(0)
    return {
        "Dense_0": {"kernel": jnp.asarray(rng.normal(size=(32, 16)), jnp.float32), "bias": jnp.ones(16)},
        "Conv_0": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 8, 16)), jnp.bfloat16)},
    }


@pytest.fixture(scope="session")
def train_state(tmp_path_factory, params):
    """A train state, with an optimiser's moments that are not zero, a step, text and None."""
    folder = tmp_path_factory.mktemp("orbax") / "state"
    adam = optax.ScaleByAdamState(jnp.asarray(3), {"w": jnp.ones((4, 4))}, {"w": jnp.full((4, 4), 2.0)})
    tree = {"params": params, "opt_state": (adam, optax.EmptyState()), "step": 5, "note": "hello", "none": None}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree, custom_metadata={"by": "me"}))
    return folder


@pytest.fixture(scope="session")
def torch_arrays():
    rng = np.random.default_rng(1)
    return {
        "model.conv.weight": rng.normal(size=(16, 8, 3, 3)).astype(np.float32),
        "model.fc.weight": rng.normal(size=(16, 32)).astype(ml_dtypes.bfloat16),
        "model.fc.bias": np.ones(16, np.float16),
        "model.fine.weight": rng.normal(size=(16, 8)),
        "model.coarse.weight": rng.normal(size=(16, 8)).astype(ml_dtypes.float8_e4m3fn),
        "model.steps": np.array(2**40 + 1),
    }


@pytest.fixture(scope="session")
def torch_file(tmp_path_factory, torch_arrays):
    """A file as PyTorch's side writes it: (out, in, ...) and `format: pt`."""
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    save_file(torch_arrays, path, metadata={"format": "pt", "licence": "none"})
    return path
