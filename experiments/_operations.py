# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Counts a training step's operations, as its program makes them.

Those are the additions and multiplications of matrix products; all else is left
out, as in the formula of `titans_jax.models.operations`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from . import _products


@dataclasses.dataclass
class Count:
  """Operations of all devices together in one step.

  Attributes:
    once: that the step's mathematics needs, forward and backward.
    again: of the forward pass, made again for the backward pass.
    kernels: calls of every kernel, by its name.
    forward: operations of a call of the memory's forward kernel, by the shape of
      what it returns.
  """

  once: float = 0.0
  again: float = 0.0
  kernels: dict[str, int] = dataclasses.field(default_factory=dict)
  forward: dict[tuple[int, ...], float] = dataclasses.field(
      default_factory=dict
  )

  @property
  def total(self) -> float:
    return self.once + self.again


def of_program(jaxpr: Any, platform: str) -> Count:
  """Counts a traced step after differentiation.

  Loops are multiplied out, kernels by their grids or their own estimates, and
  of a `platform_dependent` the branch of the platform is taken. What a kernel's
  backward pass recomputes is as much as its forward pass: that of the calls
  that are not themselves recomputed.

  Args:
    jaxpr: of the step.
    platform: "tpu", "cuda" or "cpu".
  """
  count = Count()
  _walk(jaxpr, [], 1, False, platform, count)
  return count


def _walk(jaxpr, known, times, again, platform, count) -> None:
  """Adds up a jaxpr, open or closed.

  Args:
    jaxpr: what is walked.
    known: of its arguments, the values of those that are constants, or None.
    times: how often it runs.
    again: whether it is a recomputation.
    platform: as in `of_program`.
    count: is added to.
  """
  values: dict[Any, Any] = {}
  if hasattr(jaxpr, "consts"):
    values.update(zip(jaxpr.jaxpr.constvars, jaxpr.consts))
    jaxpr = jaxpr.jaxpr
  values.update(zip(jaxpr.invars, known))

  def value(var):
    return var.val if hasattr(var, "val") else values.get(var)

  for eqn in jaxpr.eqns:
    operands = [value(var) for var in eqn.invars]
    name, params = eqn.primitive.name, eqn.params
    here = again or "rematted_computation" in str(eqn.source_info.name_stack)
    if name == "dot_general":
      _add(count, times * _product(eqn), here)
    elif name == "pallas_call":
      _add_kernel(eqn, operands, times, here, count)
    elif name == "scan":
      repeated = times * params["length"]
      _walk(params["jaxpr"], operands, repeated, here, platform, count)
    elif name == "cond":
      branches = _branches(params["branches"], platform)
      _walk_longest(branches, operands[1:], times, here, platform, count)
    elif name == "shard_map":
      # What is not sharded over a manual axis is repeated.
      names = ("newly_manual_axes", "manual_axes")  # by the version of jax
      manual = next(params[name] for name in names if name in params)
      shards = math.prod(params["mesh"].shape[axis] for axis in manual)
      _walk(params["jaxpr"], operands, times * shards, here, platform, count)
    else:
      for inner in _inner(params):
        arguments = getattr(inner, "jaxpr", inner).invars
        same = len(arguments) == len(operands)
        _walk(inner, operands if same else [], times, here, platform, count)


def _branches(branches, platform: str):
  """Leaves, of a `platform_dependent`, the platform's: the kernels are TPU's.

  A GPU's are not told apart here: of its branches the longest counts, XLA's.
  (Its index is no constant in the backward pass, but a residual.)
  """
  with_kernels = [_has_kernel(branch.jaxpr) for branch in branches]
  if not any(with_kernels):
    return branches
  wanted = platform == "tpu"
  return [b for b, has in zip(branches, with_kernels) if has == wanted]


def _has_kernel(jaxpr) -> bool:
  return any(
      eqn.primitive.name == "pallas_call"
      or any(_has_kernel(getattr(p, "jaxpr", p)) for p in _inner(eqn.params))
      for eqn in jaxpr.eqns
  )


def _inner(params):
  for value in params.values():
    for part in value if isinstance(value, (tuple, list)) else (value,):
      if hasattr(getattr(part, "jaxpr", part), "eqns"):
        yield part


def _walk_longest(branches, known, times, again, platform, count) -> None:
  counts = []
  for branch in branches:
    counts.append(Count(forward=dict(count.forward)))
    _walk(branch, known, times, again, platform, counts[-1])
  _merge(count, max(counts, key=lambda c: c.total))


def _merge(count: Count, other: Count) -> None:
  count.once += other.once
  count.again += other.again
  count.forward.update(other.forward)
  for name, calls in other.kernels.items():
    count.kernels[name] = count.kernels.get(name, 0) + calls


def _add(count: Count, operations: float, again: bool) -> None:
  if again:
    count.again += operations
  else:
    count.once += operations


# What attention's backward kernels make again, as a share of all that they do:
# the scores, and the one for queries the weights' derivatives too.
_AGAIN = {
    "splash_mha_dkv": 1 / 4,
    "splash_mha_dq": 2 / 3,
}


def _add_kernel(eqn, operands, times, again, count) -> None:
  name = str(eqn.source_info.name_stack).rpartition("/")[2]
  count.kernels[name] = count.kernels.get(name, 0) + times
  estimate = eqn.params.get("cost_estimate")
  if estimate is None:
    inner = Count()
    grid = eqn.params["grid_mapping"]
    _walk(eqn.params["jaxpr"], [], math.prod(grid.grid), False, "tpu", inner)
    operations = inner.total * _share_of_blocks(operands, grid)
    share = next((s for k, s in _AGAIN.items() if name.startswith(k)), 0)
    needed = (1 - share) * operations
  else:
    needed = operations = estimate.flops
    shape = eqn.outvars[0].aval.shape
    if name.startswith("fused_scan_forward"):
      count.forward[shape] = operations
    elif name.startswith("fused_scan_backward"):
      # The derivatives are twice a forward pass. What is made again is more the
      # further the kept states lie apart.
      needed = 2 * count.forward[shape]
  _add(count, times * (operations - needed), True)
  _add(count, times * needed, again)


def _share_of_blocks(operands, grid) -> float:
  """Returns the share of a grid that splash attention runs: those blocks that
  its table, an operand in scalar memory, does not skip."""
  for table in operands[: grid.num_index_operands]:
    if table is not None and np.asarray(table).dtype == np.int8:
      table = np.asarray(table)
      if table.size == math.prod(grid.grid[-2:]) or table.ndim == 3:
        return float(np.mean(table != 0))
  return 1.0


def _product(eqn) -> int:
  left, right = (var.aval.shape for var in eqn.invars)
  numbers = eqn.params["dimension_numbers"]
  return _products.Product(left, right, numbers).operations
