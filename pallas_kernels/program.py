# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A step as a list of operations, made fit for a core's matrix units.

Whoever writes a kernel's body by hand computes nothing twice and fills the
matrix units. Here the body is a function that was written for its meaning, so
that is done to its operations: equal ones become one, and products too small to
fill a matrix unit are laid together.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any, Callable, Iterator, Sequence

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

# Primitives that only call a jaxpr, and the parameter that holds it.
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALLERS = frozenset(
    {
        "checkpoint",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "jit",
        "pjit",
        "remat2",
    }
)
_PRODUCT = frozenset({"dot_general"})
_SUM = frozenset({"add", "add_any"})

# Rows and columns of a matrix unit's tile.
_TILE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
  """A value known when the program was traced; arrays of one value only."""

  value: Any

  def materialize(self, aval=None):
    """Returns it as an operand, or, given its shape and dtype, as a result."""
    if aval is not None:
      value = np.asarray(self.value, aval.dtype)
    else:
      value = np.asarray(self.value)
      if not value.ndim:
        return self.value  # With its weak type, if it has one.
    if not value.ndim:
      return value[()]
    return jnp.full(value.shape, value.flat[0], value.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
  """One operation of a program; values are numbered slots or constants.

  Attributes:
    primitive: of JAX.
    params: of the primitive.
    inputs: slots or constants.
    outputs: slots.
    in_avals: shapes of the inputs.
    out_avals: shapes of the outputs.
  """

  primitive: Any
  params: dict[str, Any]
  inputs: tuple[Any, ...]
  outputs: tuple[int, ...]
  in_avals: tuple[Any, ...]
  out_avals: tuple[Any, ...]

  @property
  def name(self) -> str:
    return self.primitive.name

  @property
  def slots(self) -> list[int]:
    """Returns the inputs that are slots."""
    return [place for place in self.inputs if isinstance(place, int)]

  def run(self, inputs) -> list[Any]:
    results = self.primitive.bind(*inputs, **self.params)
    return results if self.primitive.multiple_results else [results]

  def dims(self) -> tuple[int, int, int]:
    """Returns (M, K, N) of a matrix product."""
    left, right = (aval.shape for aval in self.in_avals)
    (contracted, _), _ = self.params["dimension_numbers"]
    k = math.prod(left[axis] for axis in contracted)
    return math.prod(left) // k, k, math.prod(right) // k

  def passes(self) -> int:
    """Returns how often a matrix unit, which multiplies bfloat16, makes it."""
    precision = self.params["precision"]
    # A pair; or an algorithm, or None for the default.
    if self.in_avals[0].dtype != jnp.float32 or not isinstance(
        precision, tuple
    ):
      return 1
    passes = {jax.lax.Precision.HIGH: 3, jax.lax.Precision.HIGHEST: 6}
    return passes.get(precision[0], 1)


class Program:
  """The operations of a function of arrays: calls inlined, dead ones left out.

  Products of few contracted rows whose sum is wanted become one product of more
  rows: rows are laid on top of each other at no cost, and the sum is made inside
  the matrix unit.

  Attributes:
    operations: in an order in which they can be run.
    inputs: number of its flat arguments, which are slots 0, 1, ...
    outputs: slot or `Constant` of every flat result.
    avals: of every flat result.
    structure: of the result.
  """

  def __init__(
      self, fn: Callable[..., Any], *avals, side_by_side: bool = False
  ):
    """Traces fn at arguments of the given shapes.

    Args:
      fn: of pytrees of arrays.
      *avals: its arguments.
      side_by_side: whether products of few columns that share their left operand
        become one. Its results are there at once, whenever they are needed, and
        some must be moved: good where they are soon needed.

    Raises:
      ValueError: fn closes over arrays, or has effects.
    """
    closed, results = jax.make_jaxpr(fn, return_shape=True)(*avals)
    self.structure = jax.tree.structure(results)
    self.avals = jax.tree.leaves(results)
    self.inputs = len(closed.jaxpr.invars)
    self._slots = self.inputs
    operations: list[Operation] = []
    self.outputs = self._inline(
        closed.jaxpr, closed.consts, range(self.inputs), operations, {}
    )
    operations = self._live(operations)
    operations = self._live(self._with_long_sums(operations))
    if side_by_side:
      operations = self._side_by_side(operations)
    self.operations = operations

  # ----------------------------------------------------------------------------
  # From a jaxpr.

  def _inline(self, jaxpr, consts, arguments, operations, known) -> list[Any]:
    """Appends a jaxpr's operations, but those known; returns its results."""
    env = dict(zip(jaxpr.invars, arguments))
    env.update(zip(jaxpr.constvars, map(_constant, consts)))

    def read(atom):
      if isinstance(atom, core.Literal):
        return _constant(atom.val)
      return env[atom]

    for eqn in jaxpr.eqns:
      if eqn.effects:
        raise ValueError(
            f"The step must be pure, but {eqn.primitive.name} has effects"
            f" {set(eqn.effects)}."
        )
      inputs = tuple(map(read, eqn.invars))
      callee = _callee(eqn)
      if callee is not None:
        jaxpr_in, consts_in = callee
        results = tuple(
            self._inline(jaxpr_in, consts_in, inputs, operations, known)
        )
      else:
        key = _key(eqn, inputs)
        results = known.get(key)
        if results is None:
          results = self._new_slots(len(eqn.outvars))
          operations.append(
              Operation(
                  eqn.primitive,
                  eqn.params,
                  inputs,
                  results,
                  tuple(v.aval for v in eqn.invars),
                  tuple(v.aval for v in eqn.outvars),
              )
          )
          if key is not None:
            known[key] = results
      env.update(zip(eqn.outvars, results))
    return list(map(read, jaxpr.outvars))

  def _new_slots(self, count: int) -> tuple[int, ...]:
    self._slots += count
    return tuple(range(self._slots - count, self._slots))

  def _traced(self, fn, places, avals, outputs) -> list[Operation]:
    """Returns the operations of a function of values, its results in slots that
    are given."""
    given = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
    closed = jax.make_jaxpr(fn)(*given)
    operations: list[Operation] = []
    results = self._inline(closed.jaxpr, closed.consts, places, operations, {})
    slots = dict(zip(results, outputs))
    return [
        dataclasses.replace(
            op, outputs=tuple(slots.get(s, s) for s in op.outputs)
        )
        for op in operations
    ]

  def _live(self, operations) -> list[Operation]:
    needed = {slot for slot in self.outputs if isinstance(slot, int)}
    live = []
    for operation in reversed(operations):
      if needed.intersection(operation.outputs):
        live.append(operation)
        needed.update(operation.slots)
    return live[::-1]

  # ----------------------------------------------------------------------------
  # Products laid together.

  def _with_long_sums(self, operations) -> list[Operation]:
    """Makes one product of those whose sum is wanted: a^T b + c^T d is
    [a; c]^T [b; d]."""
    producers = {s: op for op in operations for s in op.outputs}
    uses = collections.Counter(s for op in operations for s in op.slots)
    uses.update(s for s in self.outputs if isinstance(s, int))

    def only_for_this(place, names):
      producer = producers.get(place) if isinstance(place, int) else None
      if producer is None or producer.name not in names or uses[place] > 1:
        return None
      return producer

    def terms(operation) -> Iterator[tuple[Any, Any]]:
      for place, aval in zip(operation.inputs, operation.in_avals):
        inner = only_for_this(place, _SUM)
        if inner is None:
          yield place, aval
        else:
          yield from terms(inner)

    # Sums that are terms of others, and are taken up with these.
    inner = {
        place
        for operation in operations
        if operation.name in _SUM
        for place in operation.inputs
        if only_for_this(place, _SUM)
    }
    result: list[Operation] = []
    for operation in operations:
      kinds = collections.defaultdict(list)
      rest = []
      if operation.name in _SUM and operation.outputs[0] not in inner:
        for place, aval in terms(operation):
          product = only_for_this(place, _PRODUCT)
          kind = product and _kind(product)
          if kind and _contracts_rows(product):
            kinds[kind].append(product)
          else:
            rest.append((place, aval))
      if any(map(_save_tiles_of_rows, kinds.values())):
        result += self._long_sum(operation, list(kinds.values()), rest)
      else:
        result.append(operation)
    return result

  def _long_sum(self, total: Operation, groups, rest) -> list[Operation]:
    """Returns operations that make a sum of groups of products and the rest."""
    products = [product for group in groups for product in group]
    places = [p for product in products for p in product.inputs]
    avals = [a for product in products for a in product.in_avals]

    def fn(*values):
      values = iter(values)
      parts = []
      for group in groups:
        pairs = [(next(values), next(values)) for _ in group]
        parts.append(
            jax.lax.dot_general_p.bind(
                *map(jnp.concatenate, zip(*pairs)), **group[0].params
            )
        )
      result, *parts = [*parts, *values]
      for part in parts:
        result += part
      return [result]

    return self._traced(
        fn,
        places + [p for p, _ in rest],
        avals + [a for _, a in rest],
        total.outputs,
    )

  def _side_by_side(self, operations) -> list[Operation]:
    """Makes one product of those that share their left operand: a b and a c are
    the columns of a [b c]."""
    groups: dict[Any, list[Operation]] = collections.defaultdict(list)
    ancestors: dict[int, set[int]] = {}
    for operation in operations:
      above = set(operation.slots).union(
          *(ancestors.get(slot, ()) for slot in operation.slots)
      )
      ancestors.update((slot, above) for slot in operation.outputs)
      kind = operation.name in _PRODUCT and _kind(operation)
      if kind:
        group = groups[operation.inputs[0], kind]
        if not any(above.intersection(p.outputs) for p in group):
          group.append(operation)
    for group in groups.values():
      group = [product for product in group if product.dims()[2] % _TILE]
      if _saves_tiles([product.dims()[2] for product in group]):
        replaced: dict[int, list[Operation]] = {id(p): [] for p in group}
        replaced[id(group[-1])] = self._columns(group)
        merged = _sorted(
            [new for op in operations for new in replaced.get(id(op), [op])],
            self.inputs,
        )
        # Groups that are apart may need each other once they are merged.
        operations = operations if merged is None else merged
    return operations

  def _columns(self, products: Sequence[Operation]) -> list[Operation]:
    """Returns operations that make the products' results by one product."""
    params = products[0].params
    (_, (contracted,)), _ = params["dimension_numbers"]
    ends = np.cumsum([product.dims()[2] for product in products])

    def fn(left, *right):
      right = jnp.concatenate(right, axis=1 - contracted)
      result = jax.lax.dot_general_p.bind(left, right, **params)
      return [result[:, a:b] for a, b in zip([0, *ends], ends)]

    return self._traced(
        fn,
        [products[0].inputs[0], *(p.inputs[1] for p in products)],
        [products[0].in_avals[0], *(p.in_avals[1] for p in products)],
        [p.outputs[0] for p in products],
    )

  # ----------------------------------------------------------------------------
  # What it takes.

  def flops(self) -> int:
    """Returns the operations of its matrix products, for one instance."""
    return sum(2 * math.prod(dims) for dims in self.products())

  def products(self) -> list[tuple[int, int, int]]:
    """Returns (M, K, N) of every matrix product."""
    return [op.dims() for op in self._products()]

  def unit_flops(self) -> int:
    """Returns `flops`, counted as often as a matrix unit makes them."""
    return sum(
        2 * math.prod(op.dims()) * op.passes() for op in self._products()
    )

  def split_operands(self) -> list[Any]:
    """Returns the operands of products that take several passes, which are
    split into bfloat16 parts."""
    return [
        aval
        for op in self._products()
        if op.passes() > 1
        for aval in op.in_avals
    ]

  def _products(self) -> list[Operation]:
    return [op for op in self.operations if op.name in _PRODUCT]

  def transcendentals(self) -> int:
    names = ("exp", "exp2", "log", "logistic", "rsqrt", "sqrt", "tanh")
    return sum(
        math.prod(operation.out_avals[0].shape)
        for operation in self.operations
        if operation.name in names
    )

  def primitives(self) -> set[Any]:
    return {operation.primitive for operation in self.operations}


def _callee(eqn):
  """Returns (jaxpr, consts) of an operation that only calls one, or None."""
  if eqn.primitive.name not in _CALLERS:
    return None
  inner = next(eqn.params[name] for name in _CALLS if name in eqn.params)
  if isinstance(inner, core.ClosedJaxpr):
    return inner.jaxpr, inner.consts
  return inner, ()


def _constant(value) -> Constant:
  if isinstance(value, jax.core.Tracer):
    raise ValueError(
        f"The step closes over an array {value.aval.str_short()} of a"
        " surrounding transformation: pass it in consts."
    )
  array = np.asarray(value)
  if array.size and (array != array.flat[0]).any():
    raise ValueError(
        f"The step closes over an array {array.dtype}{list(array.shape)}: pass"
        " it in consts, or compute it inside."
    )
  return Constant(value)


def _key(eqn, inputs):
  """Returns what equal operations have in common; None: it is not known."""

  def of_place(place):
    if isinstance(place, int):
      return place
    value = np.asarray(place.value)
    return value.dtype.name, value.shape, value.tobytes()

  key = (
      eqn.primitive,
      tuple(map(of_place, inputs)),
      tuple(sorted(eqn.params.items())),
  )
  try:
    hash(key)
  except TypeError:
    return None
  return key


def _kind(product: Operation):
  """Returns what products that can be laid together have in common; None: it
  is not a product of two matrices."""
  (left, right), batch = product.params["dimension_numbers"]
  if any(aval.ndim != 2 for aval in product.in_avals):
    return None
  if (len(left), len(right), *map(len, batch)) != (1, 1, 0, 0):
    return None
  params = tuple(sorted(product.params.items()))
  return params, tuple(aval.dtype for aval in product.in_avals)


def _contracts_rows(product: Operation) -> bool:
  contracted, _ = product.params["dimension_numbers"]
  return contracted == ((0,), (0,))


def _save_tiles_of_rows(products: Sequence[Operation]) -> bool:
  return _saves_tiles([product.dims()[1] for product in products])


def tiles(size: int) -> int:
  """Returns the tiles of a matrix unit that rows or columns fill."""
  return -(-size // _TILE)


def _saves_tiles(sizes: Sequence[int]) -> bool:
  """Returns whether sizes fill fewer tiles together than each by itself."""
  return tiles(sum(sizes)) < sum(map(tiles, sizes))


def _sorted(operations, inputs: int) -> list[Operation] | None:
  """Returns operations so that each is behind what it needs, else as given;
  None: they need each other."""
  made = set(range(inputs))
  result: list[Operation] = []
  while operations:
    later = []
    for operation in operations:
      if made.issuperset(operation.slots):
        made.update(operation.outputs)
        result.append(operation)
      else:
        later.append(operation)
    if len(later) == len(operations):
      return None
    operations = later
  return result
