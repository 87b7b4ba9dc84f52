# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The matrix products that a chunk of the memory needs, and what they cost."""

from __future__ import annotations

import math
from typing import Iterator, Sequence

from pallas_kernels import tuning

Product = tuple[int, int, int]


def products(
    shapes: Sequence[tuple[int, int]], chunk: int, direction: str
) -> Iterator[Product]:
  """Yields (M, K, N) of a chunk's matrix products.

  Args:
    shapes: (d_in, d_out) of the memory network's layers.
    chunk: b.
    direction: "forward", or "backward", which recomputes the forward pass.
  """
  for layer, (d_in, d_out) in enumerate(shapes):
    forward = [
        *[(chunk, d_in, d_out)] * 3,  # the keys on W, the queries on W and S
        *[(d_in, chunk, d_out)] * 2,  # the updates of W and S
        (chunk, d_in, chunk),  # the queries on the chunk's keys
        (chunk, chunk, d_out),  # and those on its deltas
    ]
    if layer:
      forward.append((chunk, d_out, d_in))  # the deltas of the layer before
    for m, k, n in forward:
      yield m, k, n
      if direction == "backward":
        yield m, n, k
        yield k, m, n


def least_cycles(shapes, chunk: int, direction: str, chip: tuning.Chip):
  """Returns the matrix-unit cycles per token that the multiply-adds need."""
  total = sum(map(math.prod, products(shapes, chunk, direction)))
  return total / chunk / chip.macs_per_cycle


def bound(shapes, chunk: int, direction: str, chip: tuning.Chip) -> float:
  """Returns the share of the matrix units that the products can fill: a unit
  holds whole tiles of one operand while the other's rows stream through it."""

  def padded(size):
    return -(-size // chip.lanes) * chip.lanes

  def cost(m, k, n):
    return padded(k) * min(m * padded(n), n * padded(m))

  needed = list(products(shapes, chunk, direction))
  return sum(map(math.prod, needed)) / sum(cost(*p) for p in needed)
