# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Activations under a mesh: rows over data and fsdp, heads over tensor.

The mesh is that of `jax.set_mesh`, with any of the three axes; without one
nothing here does anything.
"""

from __future__ import annotations

import math
from typing import Any, Callable

import jax
import jax.numpy as jnp

# Mesh axes by what they shard; a mesh may have any of them.
ROW_AXES = ("data", "fsdp")
HEAD_AXES = ("tensor",)

P = jax.sharding.PartitionSpec


def over_rows_and_heads(fn: Callable[..., Any], *trees, heads: int = 1):
  """Calls fn on every shard of arrays [B, H, ...].

  Batch rows are sharded over the mesh axes data and fsdp, heads over tensor, as
  far as they divide them; leaves of size 1 along one are whole on every shard.
  Without a mesh, or inside a `shard_map` over these axes, fn is just called.

  Nothing that fn does can then be gathered, whatever XLA's partitioner thinks;
  a kernel it could not partition at all.

  Args:
    fn: of pytrees with leaves [B, H, ...], to such pytrees.
    *trees: its arguments; the first has leaves of the full sizes.
    heads: the axis of H; leaves that end before it have no heads.
  """
  mesh, free = _free_axes()
  if not free:
    return fn(*trees)
  shape = jax.tree.leaves(trees[0])[0].shape
  rows = _dividing(mesh, free, ROW_AXES, shape[0])
  over = _dividing(mesh, free, HEAD_AXES, shape[heads])

  def spec(x):
    parts: list[tuple[str, ...]] = [()] * min(x.ndim, heads + 1)
    for place, axis in ((0, rows), (heads, over)):
      if place < x.ndim and x.shape[place] > 1:
        parts[place] = axis
    return P(*parts)

  return jax.shard_map(
      fn,
      in_specs=jax.tree.map(spec, trees),
      out_specs=P(rows, *[()] * (heads - 1), over),
      axis_names=set(free),
      check_vma=False,
  )(*trees)


def sum_over_rows(fn: Callable[..., Any], rows, whole):
  """Returns fn(rows, whole), summed over the shards of the rows.

  What depends on `whole` alone is then gathered once, and its gradient reduced
  once, whatever loops fn has. Other axes than those of the rows stay XLA's.

  Args:
    fn: to a pytree of sums over its rows.
    rows: leaves [B, ...].
    whole: a pytree that every shard gets whole.
  """
  mesh, free = _free_axes()
  size = jax.tree.leaves(rows)[0].shape[0]
  axes = _dividing(mesh, free, ROW_AXES, size) if free else ()
  if not axes:
    return fn(rows, whole)
  sums = jax.shard_map(
      lambda *args: jax.tree.map(lambda x: x[None], fn(*args)),
      in_specs=(P(axes), P()),
      out_specs=P(axes),
      axis_names=set(axes),
      check_vma=False,
  )(rows, whole)
  return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)


def constrain(x: jax.Array, tensor: int | None = None) -> jax.Array:
  """Shards x [B, ...] by rows, one axis by tensor if given, no other at all.

  Args:
    x: rows, then anything.
    tensor: the axis that tensor shards.
  """
  over: dict[int, tuple[str, ...]] = {0: ROW_AXES}
  if tensor is not None:
    over[tensor] = HEAD_AXES
  return _constrain(x, over)


def gather(table: jax.Array, tensor: int) -> jax.Array:
  """Returns a parameter whole on every shard, but one axis that tensor shards.

  Where a parameter is sharded over fsdp, XLA gathers it before use if it finds
  that out; said, it need not.
  """
  return _constrain(table, {tensor: HEAD_AXES})


def _constrain(x: jax.Array, over: dict[int, tuple[str, ...]]) -> jax.Array:
  """Shards axes of x by mesh axes, as far as these divide them, no other."""
  mesh, free = _free_axes()
  if not free:
    return x
  parts: list[tuple[str, ...]] = [()] * x.ndim
  for axis, names in over.items():
    parts[axis] = _dividing(mesh, free, names, x.shape[axis])
  return jax.lax.with_sharding_constraint(x, P(*parts))


def shard_size(rows: int, size: int) -> int:
  """Returns the numbers that a shard of rows x size holds, its axis by tensor."""
  mesh, free = _free_axes()
  of_mesh = [
      math.prod(mesh.shape[name] for name in _dividing(mesh, free, names, n))
      for names, n in ((ROW_AXES, rows), (HEAD_AXES, size))
  ]
  return rows * size // math.prod(of_mesh)


def _free_axes() -> tuple[Any, tuple[str, ...]]:
  """Returns the mesh and its axes that are not manual; none if all are 1."""
  mesh = jax.sharding.get_abstract_mesh()
  free = tuple(
      name
      for name, kind in zip(mesh.axis_names, mesh.axis_types)
      if kind != jax.sharding.AxisType.Manual
  )
  if math.prod(mesh.shape[name] for name in free) == 1:
    return mesh, ()
  return mesh, free


def _dividing(mesh, free, names, size: int) -> tuple[str, ...]:
  """Returns those of the axes that the mesh has, if together they divide size."""
  chosen = tuple(name for name in names if name in free)
  if size % math.prod(mesh.shape[name] for name in chosen):
    return ()
  return chosen
