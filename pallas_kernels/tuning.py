# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a scan is cut for a device: instances per program, steps per group.

A program of few instances waits for its own results; one of many spills and
outgrows VMEM. The rule below comes from the compiler's schedules (README.md):
as many instances as leave the matrix units no gap, which is the more the
smaller a step's products are.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

MIB = 1 << 20
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What the cut depends on.

  Attributes:
    vmem: bytes of VMEM of a core.
    memory: bytes of main memory that a JAX device has.
    lanes: width of a matrix unit.
    macs_per_cycle: multiply-adds of all matrix units of a core, bfloat16.
  """

  vmem: int
  memory: int
  lanes: int
  macs_per_cycle: int


CHIPS = {
    "v4": Chip(16 * MIB, 32 * GIB, 128, 4 * 128 * 128),
    "v5e": Chip(128 * MIB, 16 * GIB, 128, 4 * 128 * 128),
    "v5p": Chip(64 * MIB, 95 * GIB, 128, 4 * 128 * 128),
    "v6e": Chip(128 * MIB, 32 * GIB, 256, 2 * 256 * 256),
    "tpu7x": Chip(64 * MIB, 96 * GIB, 256, 2 * 256 * 256),
}

# By the name that JAX gives a device.
GENERATIONS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "TPU v7x": "tpu7x",
}

# A kernel that is traced for an unknown chip must fit the smallest.
SMALLEST = CHIPS["v4"]

# Steps of an iteration of a kernel's grid beyond which its own cost is nothing.
MOST_STEPS = 8

# Of the chip's memory, for carries that a scan keeps for its backward pass. A
# model has many scans, whose carries are kept together, and a loop over its
# blocks copies them into one array and back.
_KEPT_SHARE = 1 / 180

# The compiler's own scratch, spills for the most part, comes on top.
_SHARE = 0.85


def chip() -> Chip:
  """Returns the TPU that the program is traced for, or the smallest.

  That is the device of the current mesh (`jax.set_mesh`), which may be one that
  is not there, or the default device.
  """
  return CHIPS.get(_generation(), SMALLEST)


def chip_name() -> str:
  """Returns the name of `chip()`, for messages."""
  name = _generation()
  if name is not None:
    return f"TPU {name}"
  return "the smallest TPU (jax.set_mesh tells which one is meant)"


def _generation() -> str | None:
  meant = _meant()
  kinds = [] if meant is None else [meant.device_kind]
  kinds.append(jax.devices()[0].device_kind)
  return next(
      (GENERATIONS[kind] for kind in kinds if kind in GENERATIONS), None
  )


def _meant() -> Any:
  """Returns the device of the current mesh, if that says it: its platform and
  kind."""
  return getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)


def gpu_kind() -> str | None:
  """Returns the kind of NVIDIA GPU that a program is traced for.

  That of the current mesh, also of one that is not there, else the default
  device's; None if that is no such GPU.
  """
  device: Any = _meant() or jax.devices()[0]
  # By its platform: not every kind names its maker.
  is_gpu = device.platform in ("gpu", "cuda")
  is_other = "AMD" in device.device_kind
  return device.device_kind if is_gpu and not is_other else None


def is_hopper(kind: str) -> bool:
  """Returns whether a kind of GPU is an H100 or H200."""
  return "H100" in kind or "H200" in kind


def choose_tile(
    axes: tuple[int, ...], flops: int, bytes_per_instance: int, budget: int
) -> tuple[int, ...]:
  """Returns the instances along each axis that one program owns.

  Args:
    axes: sizes of the parallel axes.
    flops: of the products of one step of one instance, as the matrix unit makes
      them: float32 in several passes.
    bytes_per_instance: VMEM that an instance needs.
    budget: bytes of VMEM.
  """
  # Sixteen small steps side by side, two large ones.
  sizes = ((10e6, 16), (40e6, 8), (120e6, 4))
  wanted = next((n for most, n in sizes if flops < most), 2)
  wanted = max(1, min(wanted, budget // bytes_per_instance))
  tile: list[int] = []
  for size in reversed(axes):
    most = wanted // math.prod(tile)
    tile.append(max(n for n in range(1, most + 1) if size % n == 0))
  return tuple(reversed(tile))


def choose_group(steps: int, most: int) -> int:
  """Returns the steps that one iteration of the forward kernel takes.

  Each iteration pays for its blocks. All steps, or an even number of them: the
  carry goes to and fro between two places, and an iteration starts at the first.

  Args:
    steps: of the scan.
    most: steps whose blocks fit VMEM, of which at least two are taken.
  """
  most = max(2, min(most, MOST_STEPS))
  if steps <= most:
    return steps
  even = range(2, most + 1, 2)
  divisor = max((n for n in even if steps % n == 0), default=0)
  # A shorter last iteration costs less than many small ones.
  return divisor if 2 * divisor > most else even[-1]


def choose_kept(steps: int, bytes_kept: int, most: int, chip: Chip) -> int:
  """Returns the steps between carries that are kept for the backward pass.

  One, which recomputes least, as long as the carries take a small part of the
  chip's memory.

  Args:
    steps: of the scan.
    bytes_kept: what the carries of all steps take in main memory.
    most: steps whose carries fit VMEM, at least one.
    chip: that it runs on.
  """
  least = math.ceil(bytes_kept / (_KEPT_SHARE * chip.memory))
  fitting = range(least, min(2 * least, most) + 1)
  return next((n for n in fitting if steps % n == 0), min(least, most))


def budget(device: Chip) -> int:
  """Returns the bytes that blocks and scratch may take."""
  return int(_SHARE * device.vmem)


def padded_bytes(shape: tuple[int, ...], itemsize: int) -> int:
  """Returns the bytes of an array in VMEM, in tiles of 8 x 128 words."""
  shape = (1,) * (2 - len(shape)) + tuple(shape)
  *lead, rows, columns = shape
  rows = -(-rows // (32 // itemsize)) * (32 // itemsize)
  columns = -(-columns // 128) * 128
  return math.prod(lead) * rows * columns * itemsize
