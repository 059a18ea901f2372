"""The cost of a model: parameters, multiply-adds, FLOPs, bytes; in total, of each parameter, of each operation.

`cost` walks the graph once and counts (`jaxprune.tracing.operations` knows what one operation costs). `Macs` counts
multiply-adds alone and is made to be asked often: a budget is met by bisection.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.masks import check_masks_fit, kept_count
from jaxprune.tracing import dims, operations
from jaxprune.tracing.axes import Sizes
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.graph import Graph, Node
from jaxprune.tracing.operations import Product
from jaxprune.tracing.origins import Origins
from jaxprune.tracing.sites import Site
from jaxprune.tracing.views import Stacked, apply_view
from jaxprune.trees import PyTree

if TYPE_CHECKING:
    from jaxprune.tracing.model import Model

Basis = Literal["dense", "after a plan", "under masks"]


@dataclasses.dataclass(frozen=True)
class PathCost:
    """What one parameter costs.

    Attributes:
      parameters: its elements.
      weight_bytes: their bytes.
      macs: the multiply-adds of the operations that consume it.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> model = jp.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 3))}, jnp.ones((5, 2)))
      >>> model.cost().per_path["w"]
      PathCost(parameters=6, weight_bytes=24, macs=30)
    """

    parameters: int
    weight_bytes: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one call of a model costs.

    Attributes:
      basis: `"dense"`, `"after a plan"` or `"under masks"`.
      parameters: the elements of all parameters; under masks those that are kept.
      macs: multiply-adds of dots and convolutions.
      flops: two for each multiply-add, and one for each element of other arithmetic.
      transcendentals: evaluations of exp, tanh, rsqrt and the like, which are no FLOPs to XLA.
      weight_bytes: the bytes of the parameters; under masks those of the kept values, without where they are.
      activation_bytes: the bytes of everything that operations write, an upper bound of the traffic: no operation is
        fused with another, and nothing is written in place.
      per_path: the share of each parameter. An operation on two parameters counts for both, and all branches of a
        `cond` count, where the total has the most expensive one.
      per_site: the multiply-adds of each operation that consumes a parameter.
      notes: what the figures leave out.
      other_macs: the multiply-adds of operations that consume no parameter, such as attention.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> model = jp.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 3))}, jnp.ones((5, 2)))
      >>> print(model.cost())
      dense (modelled)
      path   parameters  weight bytes  MACs
      w      6           24            30
      total  6           24            30
      60 FLOPs, 0 transcendentals, at most 60 activation bytes
    """

    basis: Basis
    parameters: int
    macs: int
    flops: int
    transcendentals: int
    weight_bytes: int
    activation_bytes: int
    per_path: dict[str, PathCost]
    per_site: tuple[tuple[Site, int], ...]
    notes: tuple[str, ...] = ()
    other_macs: int = 0

    @property
    def word(self) -> Literal["modelled", "theoretical"]:
        """`"modelled"`: the program does this work. `"theoretical"`: it does the dense work, zeros included."""
        return "theoretical" if self.basis == "under masks" else "modelled"

    def __str__(self) -> str:
        rows = [("path", "parameters", "weight bytes", "MACs")]
        rows += [(path, *map(_grouped, dataclasses.astuple(each))) for path, each in self.per_path.items()]
        if self.other_macs:
            rows.append(("other operations", "", "", _grouped(self.other_macs)))
        rows.append(("total", *map(_grouped, (self.parameters, self.weight_bytes, self.macs))))
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        rest = (
            f"{self.flops:,} FLOPs, {self.transcendentals:,} transcendentals, "
            f"at most {self.activation_bytes:,} activation bytes"
        )
        return "\n".join([f"{self.basis} ({self.word})", *table, rest, *(f"note: {note}" for note in self.notes)])


def _grouped(number: int) -> str:
    return f"{number:,}"


@dataclasses.dataclass(frozen=True)
class _Counts:
    macs: int = 0
    flops: int = 0
    transcendentals: int = 0
    activation_bytes: int = 0
    other_macs: int = 0

    def joined(self, others: Iterable["_Counts"], how: Callable[[Iterable[int]], int]) -> "_Counts":
        columns = zip(*map(dataclasses.astuple, (self, *others)), strict=True)
        return _Counts(*map(how, columns))


class Macs:
    """The multiply-adds of a model as a formula of the sizes of its axes.

    A branch counts as its most expensive case, a `while` loop as one turn.

    Args:
      model: the traced model.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
      >>> macs = Macs(model)
      >>> macs(model.sizes({})), macs(model.sizes({"a:1": [True, False, True]}))
      (12, 8)
    """

    def __init__(self, model: "Model"):
        self.products: dict[Node, Product] = {}
        self.live: set[Node] = set()
        self._axes = model.axes
        self._formula = self._read(model.program.graph, 1)

    def __call__(self, sizes: Sizes) -> int:
        """The multiply-adds of one call."""
        known: dict[Dim, int] = {}

        def size(dim: Dim) -> int:
            if dim not in known:
                known[dim] = sizes.size(dim)
            return known[dim]

        return self._formula.at(size)

    def _read(self, graph: Graph, trips: int) -> "_Formula":
        products, choices = [], []
        for node in _live_nodes(graph):
            self.live.add(node)
            product = operations.multiply_adds(node, self._axes)
            if product is not None:
                self.products[node] = Product(product.factor, tuple(map(dims.find, product.dims)))
                products.append(Product(product.factor * trips, self.products[node].dims))
            inner = [self._read(subgraph, trips * _trips(node)) for subgraph in node.subgraphs]
            if node.name == "cond":
                choices.append(inner)
            else:
                products.extend(each for formula in inner for each in formula.products)
                choices.extend(each for formula in inner for each in formula.choices)
        return _Formula(products, choices)


@dataclasses.dataclass(frozen=True)
class _Formula:
    """A sum of products, and of the largest of each list of choices."""

    products: list[Product]
    choices: list[list["_Formula"]]

    def at(self, size: Callable[[Dim], int]) -> int:
        largest = sum(max(formula.at(size) for formula in each) for each in self.choices)
        return sum(product.at(size) for product in self.products) + largest


def _trips(node: Node) -> int:
    return node.params["length"] if node.name == "scan" else 1


def _live_nodes(graph: Graph) -> list[Node]:
    """The nodes that the outputs depend on, as XLA and `jit` leave out the others."""
    needed = set(graph.outputs)
    live = []
    for node in reversed(list(graph.primitives())):
        if not node.outputs or needed.intersection(node.outputs) or node.equation.effects:
            live.append(node)
            needed.update(node.inputs)
    return live[::-1]


def cost(model: "Model", masks: PyTree = None, plan: Any = None) -> Cost:
    """What `Model.cost` returns; its docstring says how."""
    if masks is not None and plan is not None:
        raise ValueError(
            "cost takes masks or a plan, not both: it would not be clear of which model the masks are. For masks on "
            "the smaller model, trace jaxprune.shrunk_function(model, plan) and give its cost jaxprune.shrink(model, "
            "plan, masks)."
        )
    if plan is not None:
        if not hasattr(plan, "check"):
            raise TypeError(f"plan is of type {type(plan).__name__}; give a jaxprune.Plan, and masks as masks=.")
        plan.check(model)
    if masks is not None:
        check_masks_fit(masks, model.params)
    return _Counter(model, masks, model.sizes(plan.keep if plan is not None else {})).result(
        "under masks" if masks is not None else "dense" if plan is None else "after a plan"
    )


class _Counter:
    def __init__(self, model: "Model", masks: PyTree, sizes: Sizes):
        self.model, self.program, self.sizes = model, model.program, sizes
        self.macs = Macs(model)
        self.origins = Origins(model.program, len(model.paths))
        self.masks = None if masks is None else jax.tree.leaves(masks)
        self.site_macs = {site: self._of_site(site) for site in model.sites}
        self.of_parameters = {
            site.node: macs for site, macs in self.site_macs.items() if site.node in self.macs.products
        }
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.notes: dict[str, None] = {}

    def result(self, basis: Basis) -> Cost:
        total = self._walk(self.program.graph, 1)
        per_path = {}
        for leaf, (path, aval) in enumerate(zip(self.model.paths, self.model.leaves, strict=True)):
            parameters = 0 if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key) else self._kept(leaf)
            macs = sum(macs for site, macs in self.site_macs.items() if site.leaf == leaf)
            per_path[path] = PathCost(parameters, parameters * aval.dtype.itemsize, macs)
        return Cost(
            basis,
            sum(each.parameters for each in per_path.values()),
            total.macs,
            total.flops,
            total.transcendentals,
            sum(each.weight_bytes for each in per_path.values()),
            total.activation_bytes,
            per_path,
            tuple(self.site_macs.items()),
            tuple(self.notes),
            total.other_macs,
        )

    def _kept(self, leaf: int) -> int:
        if self.masks is not None:
            return kept_count(self.masks[leaf], self.model.leaves[leaf].shape)
        return math.prod(self._shape(self.program.graph.inputs[leaf]))

    def _of_site(self, site: Site) -> int:
        """The multiply-adds of all runs of an operation that consumes a parameter."""
        if site.node not in self.macs.products:
            return 0
        dense = self.macs.products[site.node].at(self.sizes.size)
        mask = None if self.masks is None else np.asarray(self.masks[site.leaf])
        if mask is None or mask.all():
            return dense * site.repeats
        shape = self.model.leaves[site.leaf].shape
        kept = np.asarray(apply_view(site.view, np.broadcast_to(mask, shape)))
        stacked = sum(isinstance(step, Stacked) for step in site.view)
        stack = math.prod(kept.shape[:stacked])
        macs = operations.masked_multiply_adds(site.node, self.program, dense, kept, stack)
        return macs * site.repeats // max(stack, 1)

    def _walk(self, graph: Graph, trips: int) -> _Counts:
        counts = []
        for node in graph.primitives():
            if node not in self.macs.live:
                continue
            counts.append(self._of_node(node, trips))
            inner = [self._walk(subgraph, trips * _trips(node)) for subgraph in node.subgraphs]
            counts.extend([_Counts().joined(inner, max)] if node.name == "cond" else inner)
            if node.name == "while":
                self.notes[f"a while loop counts as one turn ({node.place})"] = None
            if node.name == "cond" and sum(each.macs > 0 for each in inner) > 1:
                self.notes[f"the most expensive branch counts, by parameter all of them do ({node.place})"] = None
        return _Counts().joined(counts, sum)

    def _of_node(self, node: Node, trips: int) -> _Counts:
        product = self.macs.products.get(node)
        macs = product.at(self.sizes.size) * trips if product is not None else 0
        other = 0 if node in self.of_parameters else macs
        macs = self.of_parameters.get(node, macs)
        rule = self.model.axes.rules.get(node.name)
        # What is made from nothing is made in full and then cut.
        shape = self.program.shape if rule is not None and rule.generates else self._shape
        work = operations.other_work(node, list(map(shape, node.inputs)), list(map(shape, node.outputs)))
        if work is None:
            self.notes[f"the arithmetic of the primitive {node.name!r} is not known and counts as nothing"] = None
            work = 0, 0
        written = sum(math.prod(shape(value)) * self._itemsize(value) for value in node.outputs)
        return _Counts(macs, 2 * macs + work[0] * trips, work[1] * trips, written * trips, other)

    def _shape(self, operand: Any) -> tuple[int, ...]:
        if not isinstance(operand, int):
            return ()
        if operand not in self.shapes:
            self.shapes[operand] = self.sizes.shape(operand)
        return self.shapes[operand]

    def _itemsize(self, value: int) -> int:
        """The bytes of an element that is written; none of a view of a parameter or of a random key."""
        origin, dtype = self.origins.of(value), getattr(self.program.avals[value], "dtype", None)
        view = origin is not None and origin.leaf is not None
        return 0 if view or dtype is None or jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
