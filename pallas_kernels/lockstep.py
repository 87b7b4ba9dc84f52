# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A program run for several instances at once, in an order for a TPU core.

One instance of a step is a chain of products and row functions, each waiting for
the one before. Written one operation at a time for several independent instances
in turn, a core's units work on one while another waits. (`jax.vmap` does not do
that: it makes batched operations, whose layout changes cost more than the order
gains.)

The compiler schedules what is written, but results leave the matrix units and
the cross-lane units in the order in which they were asked for: that order is the
program's, and decides how well the units overlap.
"""

from __future__ import annotations

import heapq
from typing import Any, Callable, Iterable, NamedTuple

import jax

from pallas_kernels import program as program_lib
from pallas_kernels import tuning

Operation = program_lib.Operation
Program = program_lib.Program
Order = Callable[[Program, int], Iterable[tuple[int, Operation]]]


def run(program: Program, order: Order, instances) -> list[Any]:
  """Runs a program for several instances.

  Args:
    program: to run.
    order: `in_turn` or `scheduled`.
    instances: the arguments of each, as a tuple of pytrees.

  Returns:
    The results of each.
  """
  values: list[dict[int, Any]] = [
      dict(enumerate(jax.tree.leaves(arguments))) for arguments in instances
  ]

  def read(known, place):
    return known[place] if isinstance(place, int) else place.materialize()

  for i, operation in order(program, len(values)):
    known = values[i]
    inputs = [read(known, place) for place in operation.inputs]
    known.update(zip(operation.outputs, operation.run(inputs)))

  def result(known, place, aval):
    if isinstance(place, int):
      return known[place]
    return place.materialize(aval)

  return [
      jax.tree.unflatten(
          program.structure,
          [
              result(known, place, aval)
              for place, aval in zip(program.outputs, program.avals)
          ],
      )
      for known in values
  ]


def in_turn(program: Program, count: int):
  """Yields every operation for all instances before the next operation.

  The author's order: it keeps few values waiting. Right for a step that reads
  and updates in one go, such as a forward pass.
  """
  for operation in program.operations:
    for i in range(count):
      yield i, operation


def scheduled(program: Program, count: int):
  """Yields operations in the order in which a core could start them.

  A list schedule: each operation starts when its operands and its unit are
  there, and of those that could, the one with the longest way to the end.
  Better than the author's order where much can run side by side, as in a
  backward pass with the forward pass that it needs.
  """
  operations = program.operations
  costs = [_cost(operation) for operation in operations]
  makers = {s: n for n, op in enumerate(operations) for s in op.outputs}
  needs = [{makers[s] for s in op.slots if s in makers} for op in operations]
  users: list[list[int]] = [[] for _ in operations]
  for n, needed in enumerate(needs):
    for m in needed:
      users[m].append(n)
  way = [0.0] * len(operations)
  for n in reversed(range(len(operations))):
    after = max((way[m] for m in users[n]), default=0.0)
    way[n] = after + costs[n].cycles + costs[n].latency

  units = {unit: _Unit() for unit in _UNITS}
  missing = {(i, n): len(p) for n, p in enumerate(needs) for i in range(count)}
  when = dict.fromkeys(missing, 0.0)

  def add(i, n):
    units[costs[n].unit].add(when[i, n], (-way[n], n, i))

  for i, n in missing:
    if not missing[i, n]:
      add(i, n)
  for _ in range(count * len(operations)):
    unit = min(units.values(), key=_Unit.start)
    start, (_, n, i) = unit.take()
    cost = costs[n]
    if cost.unit != "none":
      unit.free = start + cost.cycles
    yield i, operations[n]
    for m in users[n]:
      done = start + cost.cycles + cost.latency
      when[i, m] = max(when[i, m], done)
      missing[i, m] -= 1
      if not missing[i, m]:
        add(i, m)


class _Unit:
  """A unit of a core: what waits for it, and when it is free."""

  def __init__(self):
    self.free = 0.0
    self._later: list[tuple[float, Any]] = []
    self._now: list[Any] = []

  def add(self, when: float, item) -> None:
    heapq.heappush(self._later, (when, item))

  def start(self) -> float:
    """Returns when it can start the next operation."""
    if self._now:
      return self.free
    if self._later:
      return max(self.free, self._later[0][0])
    return float("inf")

  def take(self):
    """Returns when it starts, and the item that comes first."""
    start = self.start()
    while self._later and self._later[0][0] <= start:
      heapq.heappush(self._now, heapq.heappop(self._later)[1])
    return start, heapq.heappop(self._now)


# ------------------------------------------------------------------------------
# What operations cost, in cycles, as the compiler's schedules have it (v5p).

_UNITS = ("matrix", "cross_lane", "transcendental", "vector", "none")


class _Cost(NamedTuple):
  """Cycles for which an operation keeps its unit, and until its result is there
  after that."""

  unit: str
  cycles: float
  latency: float


def _cost(operation: Operation) -> _Cost:
  name, params = operation.name, operation.params
  out = operation.out_avals[0]
  made = sum(map(_registers, operation.out_avals))
  read = sum(map(_registers, operation.in_avals))
  shift = _Cost("cross_lane", max(1, made / 2), 95)
  nothing = _Cost("none", 0, 1)
  if name == "dot_general":
    m, k, n = operation.dims()
    # Four units; a tile takes a cycle a row, and a quarter of one to be put in.
    tiles = program_lib.tiles(k) * program_lib.tiles(n)
    cycles = tiles * max(m, min(k, 128) / 4) / 4
    turned = params["dimension_numbers"][0][0] == (0,)
    return _Cost("matrix", cycles, 146 + 150 * turned)
  if name == "transpose":
    return _Cost("cross_lane", max(2, read), 200)
  if name in ("reduce_sum", "reduce_max"):
    if operation.in_avals[0].ndim - 1 in params["axes"]:
      return _Cost("cross_lane", max(1, read / 2), 120)
    return _Cost("vector", read / 4, 8)
  if name in ("tanh", "exp", "logistic"):
    return _Cost("transcendental", made, 12)
  if name in ("rsqrt", "sqrt"):
    return _Cost("transcendental", made, 40)
  if name == "broadcast_in_dim":
    return shift if _spreads(operation.in_avals, out) else nothing
  if name in ("concatenate", "pad", "slice", "split"):
    return {
        0: nothing,
        1: _Cost("vector", made / 2, 5),
        2: shift,
    }[_moves(operation)]
  if name in ("reshape", "squeeze"):
    return nothing
  if name == "convert_element_type":
    return _Cost("vector", read / 2, 8)
  latency = 97 if _spreads(operation.in_avals, out) else 2
  return _Cost("vector", made / 4, latency)


def _registers(aval) -> int:
  return tuning.padded_bytes(aval.shape, aval.dtype.itemsize) // 4096


def _spreads(avals, out) -> bool:
  """Returns whether a column is repeated over lanes."""
  if out.ndim != 2 or out.shape[1] == 1:
    return False
  return any(a.ndim == 2 and a.shape[1] == 1 for a in avals)


def _moves(operation: Operation) -> int:
  """Returns whether values change their place: 0 no, 1 in rows, 2 in lanes."""
  params, avals = operation.params, operation.in_avals
  rows = lanes = 0
  if operation.name == "slice":
    *_, rows, lanes = (0, *params["start_indices"])
  elif operation.name == "pad":
    *_, rows, lanes = (0, *(low for low, _, _ in params["padding_config"]))
  else:
    axis = params["axis" if operation.name == "split" else "dimension"]
    given = avals if operation.name == "concatenate" else operation.out_avals
    sizes = [a.shape[axis] for a in given[:-1]]
    if axis == given[0].ndim - 1:
      lanes = any(size % 128 for size in sizes)
    else:
      rows = any(size % 8 for size in sizes)
  return 2 if lanes % 128 else 1 if rows % 8 else 0
