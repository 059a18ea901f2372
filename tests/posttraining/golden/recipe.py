"""Makes the recorded results in this folder with the authors' code, in an environment with PyTorch and jaxprune.

Run: python -m tests.posttraining.golden.recipe --sparsegpt CHECKOUT --wanda CHECKOUT

in the root of the repository (see tests/benchmarks/posttraining_peer.py for those of the authors). A record holds the
weights that are left; layers are made anew from their seeds.
"""

import argparse
from pathlib import Path

import numpy as np

from tests.benchmarks import posttraining_peer as peer
from tests.posttraining.layers import make_layer

# Name: output and input features, rows of the inputs, seed.
LAYERS = {"small": (64, 96, 256, 0), "large": (128, 256, 512, 1)}


def main() -> None:
    """Writes one file a layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsegpt", type=Path, required=True)
    parser.add_argument("--wanda", type=Path, required=True)
    arguments = parser.parse_args()
    sparsegpt, wanda = peer.load_sparsegpt(arguments.sparsegpt), peer.load_wanda(arguments.wanda)
    for name, shape in LAYERS.items():
        weights, inputs = make_layer(*shape)
        gram = inputs.T @ inputs
        made = {
            "sparsegpt_50": peer.sparsegpt(sparsegpt, weights, gram, 0.5),
            "sparsegpt_24": peer.sparsegpt(sparsegpt, weights, gram, 0.0, (2, 4)),
        }
        masks = {
            "wanda_50": peer.wanda(wanda, weights, inputs, 0.5) != 0,
            "wanda_24": peer.wanda(wanda, weights, inputs, 0.0, (2, 4)) != 0,
        }
        check = np.array([np.abs(weights).sum(dtype=np.float64), np.abs(inputs).sum(dtype=np.float64)])
        packed = {key: np.packbits(mask) for key, mask in masks.items()}
        path = Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, check=check, **made, **packed)
        print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
