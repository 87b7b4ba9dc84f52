# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a run is laid out over devices: the mesh, and the rules that fill it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Sequence

import jax
from jax.experimental import mesh_utils
import numpy as np

AXES = ("data", "fsdp", "tensor")

# Sizes of the mesh axes by layout; None: what the other axes leave over.
LAYOUTS: dict[str, dict[str, int | None]] = {
    # Every device holds all parameters and some of the batch's rows.
    "dp": {"data": None, "fsdp": 1, "tensor": 1},
    # Parameters and optimizer state are sharded too, gathered where used.
    "fsdp": {"data": 1, "fsdp": None, "tensor": 1},
    # And heads, hidden units and vocabulary, with what is computed of them.
    "fsdp_tp": {"data": 1, "fsdp": None, "tensor": 2},
}

# Mesh axes by what a parameter's dimension stands for ("" : not sharded).
RULES: dict[str, str] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "hidden": "tensor",
    "memory": "",  # small, and a shard of it narrower than the lanes
}


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
  """How a run is laid out. It changes a run's speed, not its result.

  Rows of the batch, and of the memory's state, are sharded over the axes data
  and fsdp; the memory's and attention's heads over tensor.

  Attributes:
    layout: "dp", "fsdp" or "fsdp_tp", which sets the sizes that are not given.
    data: devices along the axis data; None: the layout's.
    fsdp: devices along the axis fsdp; None: the layout's.
    tensor: devices along the axis tensor, which divides the heads; None: the
      layout's.
    rules: the mesh axis of each logical axis of the parameters, several with a
      comma between them, or "" for none, where other than `RULES`. A dimension
      that its axes do not divide stays whole.
  """

  layout: str = "dp"
  data: int | None = None
  fsdp: int | None = None
  tensor: int | None = None
  rules: dict[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.layout not in LAYOUTS:
      raise ValueError(
          f"parallel.layout must be one of {tuple(LAYOUTS)}, got"
          f" {self.layout!r}."
      )
    for name in AXES:
      size = getattr(self, name)
      if size is not None and size < 1:
        raise ValueError(
            f"parallel.{name} must be at least 1, or None, got {size}."
        )
    for name in self.rules:
      if name not in RULES:
        raise ValueError(
            f"parallel.rules names the logical axes {sorted(RULES)}, got"
            f" {name!r}."
        )
    object.__setattr__(self, "rules", RULES | self.rules)
    for name, axes in self.rules.items():
      wrong = sorted(set(rule_axes(axes)) - set(AXES))
      if wrong:
        raise ValueError(
            f"parallel.rules.{name}={axes!r} must name mesh axes of {AXES}:"
            f" {wrong[0]!r} is none."
        )

  def sizes(self, num_devices: int) -> dict[str, int]:
    """Returns the size of every mesh axis.

    Raises:
      ValueError: no such mesh has num_devices devices.
    """
    sizes = dict(LAYOUTS[self.layout])
    given = {name: getattr(self, name) for name in AXES}
    sizes.update({k: v for k, v in given.items() if v is not None})
    free = [name for name, size in sizes.items() if size is None]
    fixed = math.prod(size for size in sizes.values() if size is not None)
    said = " x ".join(
        f"{k}={'?' if v is None else v}" for k, v in sizes.items()
    )
    if num_devices % fixed or (not free and num_devices != fixed):
      raise ValueError(
          f"The mesh {said} (parallel.layout={self.layout!r}) does not match"
          f" {num_devices} devices: set parallel.data, parallel.fsdp and"
          " parallel.tensor so that their product is the number of devices."
      )
    for name in free:
      sizes[name] = num_devices // fixed
    return {name: int(sizes[name] or 1) for name in AXES}


def rule_axes(axes: str) -> tuple[str, ...]:
  """Returns the mesh axes that a rule names."""
  return tuple(axis.strip() for axis in axes.split(",") if axis.strip())


def make_mesh(
    config: ParallelConfig, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """Returns the mesh of a run, axes data, fsdp and tensor, all Auto.

  Neighbours along tensor, then fsdp, are neighbours in the machine. Over slices
  of a pod, or machines of a cluster without such an order, the first axis whose
  size the number of slices divides crosses them: data if it does.

  Args:
    config: sizes.
    devices: of which the mesh is made; None: all of all processes.

  Raises:
    ValueError: the sizes do not match the devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = config.sizes(len(devices))
  shape = tuple(sizes[name] for name in AXES)
  slices = len({getattr(d, "slice_index", 0) for d in devices})
  if slices == 1:
    array = mesh_utils.create_device_mesh(
        shape, devices, allow_split_physical_axes=True
    )
  else:
    across = next((i for i, n in enumerate(shape) if n % slices == 0), None)
    if across is None:
      raise ValueError(
          f"No axis of the mesh {sizes} is a multiple of the {slices} slices:"
          f" set parallel.data={slices}."
      )
    outer = tuple(slices if i == across else 1 for i in range(len(shape)))
    inner = tuple(n // o for n, o in zip(shape, outer))
    array = mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, allow_split_physical_axes=True
    )
  kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.sharding.Mesh(np.asarray(array), AXES, axis_types=kinds)
