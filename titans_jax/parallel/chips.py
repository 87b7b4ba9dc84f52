# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What accelerators can do at best, as their makers say."""

from __future__ import annotations

import dataclasses

import pallas_kernels


@dataclasses.dataclass(frozen=True)
class Chip:
  """One JAX device.

  Attributes:
    name: as people call it.
    flops: peak operations per second on dense bfloat16 matrices.
    memory: bytes of main memory.
    memory_bandwidth: bytes per second, of main memory.
    interconnect: bytes per second that it sends to the other chips of its slice
      or machine, all links together.
  """

  name: str
  flops: float
  memory: int
  memory_bandwidth: float
  interconnect: float


_GIB = 2**30

CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * _GIB, 1.228e12, 150e9),
    "v5e": Chip("TPU v5e", 197e12, 16 * _GIB, 0.819e12, 100e9),
    "v5p": Chip("TPU v5p", 459e12, 95 * _GIB, 2.765e12, 300e9),
    "v6e": Chip("TPU v6e", 918e12, 32 * _GIB, 1.640e12, 224e9),
    # JAX has a device for each of the two dies of a chip.
    "tpu7x": Chip("TPU7x", 1153e12, 96 * _GIB, 3.690e12, 300e9),
    "a100": Chip("NVIDIA A100", 312e12, 80 * 10**9, 2.039e12, 300e9),
    "h100": Chip("NVIDIA H100", 989e12, 80 * 10**9, 3.350e12, 450e9),
    "h200": Chip("NVIDIA H200", 989e12, 141 * 10**9, 4.800e12, 450e9),
}


def find(device_kind: str) -> Chip | None:
  """Returns the chip that JAX calls so, or None if it is not known here."""
  generation = pallas_kernels.GENERATIONS.get(device_kind)
  if generation is not None:
    return CHIPS[generation]
  for name in ("a100", "h100", "h200"):
    if name in device_kind.lower():
      return CHIPS[name]
  return None
