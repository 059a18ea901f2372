"""The layers of a function: its program, and the parameters that it multiplies data with. Costs one trace."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxprune import trees
from jaxprune.tracing.graph import Program, build
from jaxprune.tracing.matrices import Matrix, find_matrices
from jaxprune.tracing.origins import Origins
from jaxprune.tracing.sites import GATHER, Roles, Site, find_sites
from jaxprune.trees import PyTree, Where


@dataclasses.dataclass(frozen=True, eq=False)
class Layers:
    """What a trace tells of the operations that consume parameters.

    Attributes:
      paths: the path of each parameter, in flattening order.
      leaves: the abstract parameters.
      program: the flat graph of the trace.
      outputs: the abstract outputs.
      origins: where values come from.
      products: the operations that consume parameters, also as parts of a concatenation.
      roles: what the program does with the axes of parameters.
    """

    paths: tuple[str, ...]
    leaves: tuple[Any, ...]
    program: Program
    outputs: PyTree
    origins: Origins
    products: tuple[Site, ...]
    roles: Roles

    @functools.cached_property
    def sites(self) -> tuple[Site, ...]:
        """The operations whose operand is one parameter."""
        return tuple(site for site in self.products if site.span is None)

    @functools.cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """The floating parameters, or parts of them, that data is multiplied with."""
        floating = [site for site in self.products if trees.is_floating(self.leaves[site.leaf])]
        return find_matrices(floating, self.program)

    @functools.cached_property
    def embeddings(self) -> frozenset[int]:
        """The positions of the parameters that rows are looked up in."""
        return frozenset(site.leaf for site in self.products if site.kind == GATHER)

    def chosen(self, where: Where, params: PyTree) -> tuple[Matrix, ...]:
        """The matrices of the parameters that `where` chooses; None takes them all.

        Raises:
          ValueError: there are none.
        """
        flags = [True] * len(self.paths) if where is None else jax.tree.leaves(trees.resolve_where(where, params))
        found = tuple(matrix for matrix in self.matrices if flags[matrix.leaf])
        if not found:
            described = "the function" if where is None else f"where={where!r}"
            own = list(dict.fromkeys(matrix.path for matrix in self.matrices))
            raise ValueError(
                f"{described} has no parameter that data is multiplied with: nothing to calibrate. Such parameters are "
                f"{trees.list_paths(own) or 'none'}; `jp.trace(...).coverage()` says why others are not."
            )
        return found


def read_layers(apply_fn: Callable[..., Any], params: PyTree, *args: Any) -> Layers:
    """The layers of `apply_fn(params, *args)`.

    Args:
      apply_fn: a pure function.
      params: its parameters, concrete or abstract.
      args: its arguments.

    Returns:
      The layers.

    Example:
      >>> import jax.numpy as jnp
      >>> layers = read_layers(lambda p, x: x @ p["a"], {"a": jnp.ones((2, 3))}, jnp.ones(2))
      >>> [matrix.name for matrix in layers.matrices]
      ['a']
    """
    params, args = jax.tree.map(abstract, (params, args))
    jaxpr, outputs = jax.make_jaxpr(apply_fn, return_shape=True)(params, *args)
    program = build(jaxpr)
    named = trees.leaves_with_paths(params)
    paths, leaves = tuple(path for path, _ in named), tuple(leaf for _, leaf in named)
    origins = Origins(program, len(paths))
    sites, roles = find_sites(program, origins, paths)
    return Layers(paths, leaves, program, outputs, origins, tuple(sites), roles)


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, a scalar, or something abstract; a Python scalar stays weak in its type."""
    aval = jax.typeof(leaf) if not isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
