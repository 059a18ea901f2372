"""The user's own module on smaller parameters: adapters for Flax Linen, Flax NNX and Equinox.

`jaxprune.shrunk_function` replays the trace and needs no adapter. The adapters keep what a replay cannot: the module
object with its names, its dropout, its mutable state, its training code.

- `linen`: `shrink` cuts the variables, and under `follow_shapes` the original module runs on them.
- `nnx`: `resize` gives a module whose Variables and attributes are smaller.
- `equinox`: `resize` does the same with `eqx.tree_at`.

Each is imported by name (`from jaxprune.frameworks import nnx`), so that `import jaxprune` loads no framework. Haiku
and plain functions need none: a function that reads its sizes from its parameters is called on the smaller ones as it
is, any other is replayed.

Three things hold for all of them. A normalisation takes its mean over what is left, so a module agrees with
`shrunk_function(..., norm="resize")`, not with `norm="exact"`. Attention divides by the square root of the head size
that is left, and the difference to the trained size is folded into the query's weights. And each runs the smaller
module once, against the replay, before handing it out: one that does not fit, or that computes something else, is an
error which names the module, the line and the remedy. Where random numbers are drawn only shapes are compared, and a
warning says so: trace in evaluation mode.
"""
