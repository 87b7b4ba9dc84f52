# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Kernels under a mesh: a kernel is not partitioned, it is run per shard."""

from __future__ import annotations

import math
from typing import Any, Callable

import jax

# Mesh axes by what they shard; a mesh may have any of them.
ROW_AXES = ("data", "fsdp")
HEAD_AXES = ("tensor",)

P = jax.sharding.PartitionSpec


def over_rows_and_heads(fn: Callable[..., Any], *trees, heads: int = 1):
  """Calls fn on every shard of arrays [B, H, ...].

  Batch rows are sharded over the mesh axes data and fsdp, heads over tensor, as
  far as they divide them; leaves of size 1 along one are whole on every shard.
  Without a mesh, or inside a `shard_map` over these axes, fn is just called.

  Args:
    fn: of pytrees with leaves [B, H, ...], to such pytrees.
    *trees: its arguments; the first has leaves of the full sizes.
    heads: the axis of H; leaves that end before it have no heads.
  """
  mesh = jax.sharding.get_abstract_mesh()
  free = [
      name
      for name, kind in zip(mesh.axis_names, mesh.axis_types)
      if kind != jax.sharding.AxisType.Manual
  ]
  if not free or math.prod(mesh.shape[name] for name in free) == 1:
    return fn(*trees)
  shape = jax.tree.leaves(trees[0])[0].shape
  sizes = shape[0], shape[heads]

  def choose(names, size):
    chosen = tuple(name for name in names if name in free)
    if size % math.prod(mesh.shape[name] for name in chosen):
      return ()
    return chosen

  axes = [choose(n, s) for n, s in zip((ROW_AXES, HEAD_AXES), sizes)]

  def spec(x):
    parts = [()] * min(x.ndim, heads + 1)
    for place, axis in zip((0, heads), axes):
      if place < x.ndim and x.shape[place] > 1:
        parts[place] = axis
    return P(*parts)

  return jax.shard_map(
      fn,
      in_specs=jax.tree.map(spec, trees),
      out_specs=P(axes[0], *[()] * (heads - 1), axes[1]),
      axis_names=set(free),
      check_vma=False,
  )(*trees)
