"""Which matrices make a block."""

import jax.numpy as jnp
import pytest

from jaxprune.posttraining.stages import Frame
from jaxprune.posttraining.units import Blocks
from jaxprune.tracing.layers import read_layers


@pytest.mark.parametrize(
    ("expected", "names"),
    [
        # Trunk_0 is one of a kind, so its blocks are the layers.
        (
            ["Trunk_0/Block_0"] * 2 + ["Trunk_0/Block_1", "head"],
            ["Block_0/Dense_0", "Block_0/Dense_1", "Block_1/Dense_0"],
        ),
        (["Trunk_0/layer/0"] * 2 + ["Trunk_0/layer/11", "head"], ["layer/0/q", "layer/0/k", "layer/11/q"]),
    ],
)
def test_blocks_are_the_numbered_parts_that_repeat(expected, names) -> None:
    params = {f"Trunk_0/{name}": jnp.eye(4) for name in names} | {"head": jnp.eye(4)}

    def net(p, x):
        for w in p.values():
            x = jnp.tanh(x @ w)
        return x

    layers = read_layers(net, params, jnp.ones((8, 4)))
    found = [Blocks().key(matrix, Frame(layers, layers.program.graph)) for matrix in layers.matrices]
    assert found == expected
