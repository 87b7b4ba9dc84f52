# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How often a scan keeps its carry for its backward pass."""

from __future__ import annotations

import math

from pallas_kernels import tuning

# Bytes of carries that a scan keeps before it groups its steps. Groups of several
# steps stack what they recompute and read it again: on an H200 a scan of D 128 and
# chunk 256 took 51 ms in groups of two, and 34 ms without. These GPUs have the
# memory, 80 GB and more.
_BYTES = 2**29
_BYTES_ON_HOPPER = 2**32


def choose_group(steps: int, group: int | None, size: int) -> int:
  """Returns the steps per group, by default a divisor of the steps.

  Groups are chosen as large as the carries need that are kept, and at most near
  the square root, where the memory is least.

  Args:
    steps: N.
    group: steps that were asked for, or None.
    size: bytes of a carry.
  """
  if group is not None:
    return min(group, steps)
  kind = tuning.gpu_kind()
  is_hopper = kind is not None and tuning.is_hopper(kind)
  most = _BYTES_ON_HOPPER if is_hopper else _BYTES
  root = math.isqrt(steps)
  least = min(root, -(-steps * size // most))
  divisors = [g for g in range(least, 2 * root + 1) if steps % g == 0]
  return divisors[0] if divisors else root
