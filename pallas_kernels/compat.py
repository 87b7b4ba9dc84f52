# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What differs between the versions of JAX that are supported."""

from __future__ import annotations

from jax._src.pallas.mosaic import lowering


def not_lowered(primitives) -> list[str]:
  """Returns the names of the primitives without a rule for TPU kernels.

  The list of rules is not public; where it cannot be found nothing is known,
  and the compiler will say.
  """
  by_core = getattr(lowering, "lowering_rules", None)
  if not isinstance(by_core, dict):
    return []
  # The other cores (SparseCore's) have rules of their own, which are there only
  # once somebody has imported them.
  known = next(
      (rules for core, rules in by_core.items() if str(core) == "tc"), None
  )
  if not known:
    return []
  return sorted({p.name for p in primitives if p not in known})
