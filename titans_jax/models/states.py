# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model states as values: what of one belongs to its rows, and what to all."""

from __future__ import annotations

from typing import Any

import jax

# Made from the parameters alone, [1, ...]: what a document starts from.
_OF_ALL_ROWS = frozenset(("initial", "prefix"))


def of_all_rows(path: jax.tree_util.KeyPath) -> bool:
  """Returns whether a state's leaf is the same for all rows, by its path."""
  return any(getattr(key, "name", None) in _OF_ALL_ROWS for key in path)


# The axis of the heads, by a field that holds leaves with four axes.
_HEADS = {
    "chunk_start": 1,
    "segment_start": 1,
    "initial": 1,
    "open": 1,
    "ring": 2,
    "recalled": 2,
    "sequence": 2,
    "prefix": 2,
}


def heads_axis(path: jax.tree_util.KeyPath, ndim: int) -> int | None:
  """Returns the axis of a leaf's heads, or None if it has no heads."""
  if ndim != 4:
    return None
  names = [getattr(key, "name", None) for key in path]
  return next((_HEADS[name] for name in names if name in _HEADS), None)


def num_rows(state: Any) -> int:
  """Returns B, of a state of `TitansLM`, abstract or not."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return next(x.shape[0] for path, x in leaves if not of_all_rows(path))


def carry(state: Any, fresh: Any) -> Any:
  """Returns a state with which to read on under changed parameters.

  What the rows have read goes on without its gradient: back-propagation is cut
  there. What a document starts from is fresh, with its gradient.

  Args:
    state: behind an earlier call.
    fresh: of the parameters now, for any number of rows.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, old, new: new
      if of_all_rows(path)
      else jax.lax.stop_gradient(old),
      state,
      fresh,
  )
