"""For every kind of site: the energy of what a layer gives follows from the Gram matrix, tr(W G W^T) = |y|^2."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.calibration import statistics
from jaxprune.calibration.capture import Tap
from jaxprune.tracing.inputs import find_inputs
from jaxprune.tracing.layers import read_layers
from jaxprune.tracing.matrices import find_matrices
from tests.zoo.models import ZOO

# One or more of each kind: dense, strided, dilated, grouped, depthwise and transposed convolutions, einsums over heads,
# fused and tied weights, mixtures of experts, scans, loops, branches, remat, casts, recurrent cells.
MODELS = [
    "bert",
    "control_flow",
    "custom_gradients",
    "kv_cache",
    "linen_gru",
    "linen_scan_transformer",
    "llama_remat",
    "mobilenet",
    "moe_ragged",
    "transposed_attention",
    "wavenet",
]


class Energies(Tap):
    """Collects the energy of the outputs, and the operand, beside the statistic of the inputs."""

    def step(self, node, operands, values):
        outputs = super().step(node, operands, values)
        for source in self.at.get(node, ()):
            self.note({source.name + " energy": jnp.sum(jnp.square(outputs[0].astype(jnp.float32)))})
            if not source.loops:
                self.note({source.name + " operand": jnp.asarray(operands[source.site.operand], jnp.float32)})
        return outputs


@pytest.mark.parametrize("name", MODELS)
def test_energy_of_outputs_follows_from_grams(name: str) -> None:
    zoo = ZOO[name]()
    layers = read_layers(zoo.apply_fn, zoo.params, *zoo.args)
    # Each operation by itself, so that shared inputs and tied weights are looked at one by one.
    matrices = [matrix for site in layers.sites for matrix in find_matrices([site], layers.program)]
    found_inputs = [find_inputs([matrix], layers.program)[0][0] for matrix in matrices]
    sources = [dataclasses.replace(source, name=str(k)) for k, source in enumerate(found_inputs)]

    @jax.jit
    def run(leaves):
        tap = Energies(layers.program, sources, statistics.gram)
        tap(leaves)
        return tap.found

    leaves = jax.tree.leaves((zoo.params, zoo.args))
    found = run(leaves)
    assert sources
    for matrix, source in zip(matrices, sources, strict=True):
        count, gram = found[source.name]
        arrangement = matrix.arrangement
        if source.loops and not arrangement.exact:
            continue
        if source.loops:
            weights = arrangement.to_matrix(jnp.asarray(leaves[matrix.leaf], jnp.float32))
        else:
            weights = arrangement.from_operand(found[source.name + " operand"])
        energy = jnp.einsum("...ok,...kl,...ol->", weights, gram, weights, precision="highest")
        np.testing.assert_allclose(energy, found[source.name + " energy"], rtol=2e-3, err_msg=matrix.name)
        assert (np.asarray(count) > 0).any() or name == "control_flow"  # a branch is not taken
