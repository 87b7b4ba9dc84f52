# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where every array of a run lives: from names to logical axes to mesh axes."""

from __future__ import annotations

import math
import re
from typing import Any

import jax

from titans_jax.memory import sharding as sharding_lib
from titans_jax.models import config as model_config
from titans_jax.models import states
from titans_jax.parallel import mesh as mesh_lib

P = jax.sharding.PartitionSpec
NamedSharding = jax.sharding.NamedSharding

# The logical axes of a parameter's last dimensions by the end of its path, the
# first that fits; dimensions before them (the layers') are whole.
PARAMETERS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(un)?embedding", ("vocab", "embed")),
    (r"persistent", (None, "embed")),
    (r"initial_weights_\d+", ("heads", None, "memory")),
    (r"net_\w+", ("heads", None)),
    (r"memory/norm/scale", ("heads", None)),
    (r"memory/gates/kernel", ("embed", None)),
    (r"\w+_conv/kernel", (None, "heads")),
    (r"(attention|memory)/out/kernel", ("heads", "embed")),
    (r"(attention|memory)/\w+/kernel", ("embed", "heads")),
    (r"feed_forward/down/kernel", ("hidden", "embed")),
    (r"feed_forward/(gate|up)/kernel", ("embed", "hidden")),
    # Of forecasters and classifiers: small.
    (r"cycle|place", (None, None)),
    (r"(trend|rest|patch|head)/kernel", (None, None)),
    (r"scale|bias", (None,)),
)


def logical_axes(path: str) -> tuple[str | None, ...]:
  """Returns the logical axes of a parameter, by its path "blocks/...".

  Raises:
    ValueError: `PARAMETERS` has no entry for it.
  """
  for pattern, axes in PARAMETERS:
    if re.search(rf"(^|/){pattern}$", path):
      return axes
  raise ValueError(
      f"The parameter {path!r} has no entry in parallel.rules.PARAMETERS."
  )


def params_shardings(
    params: Any, mesh: jax.sharding.Mesh, config: mesh_lib.ParallelConfig
) -> Any:
  """Returns the sharding of every parameter, in the parameters' structure.

  It fits whatever else has their paths and shapes, such as an optimizer's
  moments. A scalar is whole everywhere.

  Args:
    params: a tree with paths that end as the parameters' do; leaves with shapes.
    mesh: of `make_mesh`.
    config: with the rules.
  """

  def one(path, leaf):
    if not leaf.ndim:
      return NamedSharding(mesh, P())
    axes = logical_axes(_name(path))
    axes = (None,) * (leaf.ndim - len(axes)) + axes
    spec: list[tuple[str, ...]] = []
    for size, logical in zip(leaf.shape, axes, strict=True):
      chosen = mesh_lib.rule_axes(config.rules[logical]) if logical else ()
      used = {name for names in spec for name in names}
      chosen = tuple(name for name in chosen if name not in used)
      if size % math.prod(mesh.shape[name] for name in chosen):
        chosen = ()
      spec.append(chosen)
    return NamedSharding(mesh, P(*spec))

  return jax.tree_util.tree_map_with_path(one, params)


def state_shardings(state: Any, mesh: jax.sharding.Mesh) -> Any:
  """Returns the sharding of a model state: rows over data and fsdp, heads over
  tensor, as far as these divide them."""

  def one(path, leaf):
    spec: list[tuple[str, ...] | None] = [None] * leaf.ndim
    axes = []
    if not states.of_all_rows(path):
      axes.append((0, sharding_lib.ROW_AXES))
    if (heads := states.heads_axis(path, leaf.ndim)) is not None:
      axes.append((heads, sharding_lib.HEAD_AXES))
    for axis, names in axes:
      if leaf.shape[axis] % math.prod(mesh.shape[name] for name in names) == 0:
        spec[axis] = names
    return NamedSharding(mesh, P(*spec))

  return jax.tree_util.tree_map_with_path(one, state)


def constrain_state(state: Any) -> Any:
  """Returns a traced state with its shardings on the mesh of `jax.set_mesh`."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return state
  return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh))


def bytes_on_device(tree: Any) -> int:
  """Returns the bytes that each device holds of arrays, abstract or not."""
  return sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
  )


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of a batch's arrays [B, ...]: rows over data, fsdp."""
  return NamedSharding(mesh, P(sharding_lib.ROW_AXES))


def row_group(batch_size: int) -> tuple[int, int]:
  """Returns which part of a batch this process reads, and of how many.

  Processes whose devices hold the same rows, for another part of the heads,
  read the same part. The mesh is that of `jax.set_mesh`; without one, the only
  part.

  Raises:
    ValueError: the rows of two processes overlap, but are not the same.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return 0, 1
  held: dict[int, set[int]] = {}
  indices = batch_sharding(mesh).devices_indices_map((batch_size,))
  for device, (rows,) in indices.items():
    held.setdefault(device.process_index, set()).add(rows.start or 0)
  groups = sorted({tuple(sorted(rows)) for rows in held.values()})
  if sum(map(len, groups)) != len(set().union(*groups)):
    raise ValueError(
        f"On the mesh {dict(mesh.shape)} processes share some rows of the batch"
        " but not all: choose parallel.tensor so that it divides, or is a"
        " multiple of, the devices of a process."
    )
  mine = tuple(sorted(held[jax.process_index()]))
  return groups.index(mine), len(groups)


def place(batch: Any, batch_size: int) -> Any:
  """Returns a batch on the mesh of `jax.set_mesh`; without one, as it is.

  Args:
    batch: numpy arrays, [batch_size / count, ...] for the count of `row_group`,
      or [batch_size, ...].
    batch_size: rows of all processes.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return batch
  sharding = batch_sharding(mesh)
  return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(
          sharding, x, (batch_size, *x.shape[1:])
      ),
      batch,
  )


def check(
    mesh: jax.sharding.Mesh,
    model: model_config.TitansConfig,
    *,
    batch_size: int,
    accumulation: int = 1,
) -> None:
  """Raises ValueError where a mesh axis does not divide what it shards."""
  rows = math.prod(mesh.shape[name] for name in sharding_lib.ROW_AXES)
  if batch_size % (rows * accumulation):
    raise ValueError(
        f"data.batch_size={batch_size} is not a multiple of {rows}, the rows of"
        f" the mesh {dict(mesh.shape)}, times train.accumulation={accumulation}."
    )
  tensor = mesh.shape["tensor"]
  for name in ("num_heads", "ffn_dim"):
    if getattr(model, name) % tensor:
      raise ValueError(
          f"parallel.tensor={tensor} does not divide"
          f" model.{name}={getattr(model, name)}."
      )


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
