"""Primitives whose values come from nowhere: counters, constants, random bits. They are made in full, then cut."""

from jaxprune.tracing import dims
from jaxprune.tracing.axes import Axes
from jaxprune.tracing.graph import Node
from jaxprune.tracing.rules._rule import Rule, opaque


def _fresh(node: Node, axes: Axes) -> None:
    for output in node.outputs:
        axes.set(output, dims.atoms(axes.shape(output)))


def _per_key(node: Node, axes: Axes) -> None:
    """random_bits, random_split: one set of values for each key."""
    keys, (output,) = axes.of(node.inputs[0]), node.outputs
    axes.freeze(node, keys, "each index has a random key of its own")
    axes.set(output, [*keys, *dims.atoms(axes.shape(output)[len(keys) :])])


def _bit_generator(node: Node, axes: Axes) -> None:
    state, bits = node.outputs
    axes.freeze(node, axes.of(node.inputs[0]), "it is the state of a random generator")
    axes.set(state, axes.of(node.inputs[0]))
    axes.set(bits, dims.atoms(axes.shape(bits)))


def _wrap(node: Node, axes: Axes) -> None:
    """Between keys and the words of their data, which are the last axis."""
    (operand,), (output,) = node.inputs, node.outputs
    longer = axes.of(operand) if len(axes.shape(operand)) > len(axes.shape(output)) else None
    if longer is not None:
        axes.freeze(node, longer[len(axes.shape(output)) :], "these are the words of a random key")
        axes.set(output, longer[: len(axes.shape(output))])
    else:
        keys = axes.of(operand)
        axes.set(output, [*keys, *axes.frozen(node, axes.shape(output)[len(keys) :], "these are the words of a key")])


RULES = {name: Rule(_fresh, generates=True) for name in ("iota", "empty", "create_token", "rng_uniform")}
RULES |= {name: Rule(_per_key, generates=True) for name in ("random_bits", "random_split")}
RULES["rng_bit_generator"] = Rule(_bit_generator, generates=True)
# Its draws depend on how many there are, so those for a cut array are not a cut of those for the whole.
RULES["random_gamma"] = opaque("each element has a random draw of its own")
RULES |= {name: Rule(_wrap) for name in ("random_wrap", "random_unwrap", "random_seed")}
