# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A function run for several instances at once, operation by operation.

A TPU core issues the operations of a kernel nearly in the order of the program:
results leave its matrix and cross-lane units in the order in which they were
asked for. One instance of a step is a chain of products and row functions, each
waiting for the one before. Written one operation at a time for several
independent instances in turn, the units work on one while another waits.
(`jax.vmap` does not do that: it makes batched operations, whose layout changes
cost more than the order gains.)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Callable

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


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
  """One operation of a program; values are numbered slots or constants."""

  eqn: Any
  inputs: tuple[Any, ...]
  outputs: tuple[int, ...]

  def run(self, inputs) -> list[Any]:
    primitive = self.eqn.primitive
    results = primitive.bind(*inputs, **self.eqn.params)
    return results if primitive.multiple_results else [results]


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
  """A value known when the program was traced; arrays of one value only."""

  value: Any

  def materialize(self):
    value = np.asarray(self.value)
    if not value.ndim:
      return self.value
    return jnp.full(value.shape, value.flat[0], value.dtype)


class Program:
  """The operations of a function of arrays, calls inlined, dead ones left out.

  Attributes:
    operations: in order.
    inputs: number of its flat arguments, which are slots 0, 1, ...
    outputs: slot or `Constant` of every flat result.
  """

  def __init__(self, fn: Callable[..., Any], *avals):
    """Traces fn at arguments of the given shapes.

    Raises:
      ValueError: fn closes over arrays.
    """
    closed, results = jax.make_jaxpr(fn, return_shape=True)(*avals)
    self._structure = jax.tree.structure(results)
    self.avals = jax.tree.leaves(results)
    self.inputs = len(closed.jaxpr.invars)
    self._slots = self.inputs
    operations: list[Operation] = []
    env = dict(zip(closed.jaxpr.invars, range(self.inputs)))
    self.outputs = self._inline(closed.jaxpr, closed.consts, env, operations)
    self.operations = self._live(operations)
    self._producers = {
        slot: operation
        for operation in self.operations
        for slot in operation.outputs
    }

  def _inline(self, jaxpr, consts, env, operations) -> list[Any]:
    """Appends a jaxpr's operations; returns where its results are."""
    env.update(zip(jaxpr.constvars, map(_constant, consts)))

    def read(atom):
      if isinstance(atom, core.Literal):
        return _constant(atom.val)
      return env[atom]

    for eqn in jaxpr.eqns:
      inputs = tuple(map(read, eqn.invars))
      callee = _callee(eqn)
      if callee is not None:
        jaxpr_in, consts_in = callee
        inner = dict(zip(jaxpr_in.invars, inputs))
        results = self._inline(jaxpr_in, consts_in, inner, operations)
      else:
        results = list(range(self._slots, self._slots + len(eqn.outvars)))
        self._slots += len(eqn.outvars)
        operations.append(Operation(eqn, inputs, tuple(results)))
      env.update(zip(eqn.outvars, results))
    return list(map(read, jaxpr.outvars))

  def _live(self, operations) -> list[Operation]:
    needed = {slot for slot in self.outputs if isinstance(slot, int)}
    live = []
    for operation in reversed(operations):
      if operation.eqn.effects or needed.intersection(operation.outputs):
        live.append(operation)
        needed.update(s for s in operation.inputs if isinstance(s, int))
    return live[::-1]

  def __call__(self, instances) -> list[Any]:
    """Runs the program in lockstep.

    Args:
      instances: the arguments of each, as a tuple of pytrees.

    Returns:
      The results of each.
    """
    values: list[dict[int, Any]] = [
        dict(enumerate(jax.tree.leaves(arguments))) for arguments in instances
    ]

    for operation in self.operations:
      for known in values:
        self.value(operation.outputs[0], known)
    return [
        jax.tree.unflatten(
            self._structure, [self.value(slot, known) for slot in self.outputs]
        )
        for known in values
    ]

  def made_from_arguments(self, names) -> set[int]:
    """Returns the slots that the named operations make from arguments alone."""
    made = set(range(self.inputs))
    for operation in self.operations:
      if operation.eqn.primitive.name in names and all(
          value in made for value in operation.inputs if isinstance(value, int)
      ):
        made.update(operation.outputs)
    return made

  def value(self, place, known: dict[int, Any]):
    """Returns the value of a slot or constant; makes and adds what lacks."""
    if not isinstance(place, int):
      return place.materialize()
    if place not in known:
      operation = self._producers[place]
      known.update(
          zip(
              operation.outputs,
              operation.run(
                  [self.value(value, known) for value in operation.inputs]
              ),
          )
      )
    return known[place]

  def flops(self) -> int:
    """Returns the operations of its matrix products, for one instance."""
    return sum(2 * math.prod(dims) for dims in self.products())

  def products(self) -> list[tuple[int, int, int]]:
    """Returns (M, K, N) of every matrix product."""
    dims = []
    for operation in self.operations:
      if operation.eqn.primitive.name == "dot_general":
        left, right = (v.aval.shape for v in operation.eqn.invars)
        (contract, _), _ = operation.eqn.params["dimension_numbers"]
        k = math.prod(left[axis] for axis in contract)
        dims.append((math.prod(left) // k, k, math.prod(right) // k))
    return dims

  def transcendentals(self) -> int:
    names = ("exp", "exp2", "log", "logistic", "rsqrt", "sqrt", "tanh")
    return sum(
        math.prod(operation.eqn.outvars[0].aval.shape)
        for operation in self.operations
        if operation.eqn.primitive.name in names
    )

  def primitives(self) -> set[Any]:
    return {operation.eqn.primitive for operation in self.operations}


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
