# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums over the bits of arrays, made where the arrays live."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def checksums(tree: Any) -> dict[str, int]:
  """Returns a sum over the bits of every leaf, by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  sums = jax.device_get(_bit_sums([leaf for _, leaf in leaves]))
  return {
      jax.tree_util.keystr(path): int(value)
      for (path, _), value in zip(leaves, sums)
  }


@jax.jit
def _bit_sums(leaves):
  # One program: several at once would wait for each other's collectives.

  def bit_sum(x):
    if x.dtype == bool:
      x = x.astype(jnp.uint8)
    unsigned = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    words = jax.lax.bitcast_convert_type(x, unsigned)
    return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

  return [bit_sum(x) for x in leaves]
