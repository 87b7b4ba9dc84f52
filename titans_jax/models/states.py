# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model states as values: what of one belongs to its rows, and what to all."""

from __future__ import annotations

from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np

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


def size_in_bytes(state: Any) -> int:
  """Returns the bytes of a state's arrays, abstract or not."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def select_rows(state: Any, rows: Sequence[int] | jax.Array) -> Any:
  """Returns the state of some rows, in their order, each as often as named.

  What continuous batching and beam search need. Under `jax.jit` rows may be
  traced, and are then not checked.

  Args:
    state: of B rows.
    rows: int [N], each from 0 to B - 1.

  Raises:
    ValueError: no rows, or one that the state does not have.
  """
  count = num_rows(state)
  if not isinstance(rows, jax.core.Tracer):
    named = np.asarray(rows)
    if named.ndim != 1 or not named.size or named.dtype.kind not in "iu":
      raise ValueError(f"rows must be a list of integers, got {rows!r}.")
    if named.min() < 0 or named.max() >= count:
      raise ValueError(f"rows {rows} must lie between 0 and {count - 1}.")
  index = jnp.asarray(rows)
  return jax.tree_util.tree_map_with_path(
      lambda path, x: x if of_all_rows(path) else x[index], state
  )


def merge_rows(states: Sequence[Any]) -> Any:
  """Returns one state with the rows of several, one after another.

  Raises:
    ValueError: no states, or those of models of different forms.
  """
  if not states:
    raise ValueError("There is no state to merge.")
  if len({jax.tree.structure(state) for state in states}) > 1:
    raise ValueError("The states are those of models of different forms.")
  first = states[0]
  for other in states[1:]:
    for path, a, b in _pairs(first, other):
      if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
        raise ValueError(
            f"The states differ in {jax.tree_util.keystr(path)}: {a.dtype}"
            f" {a.shape[1:]} and {b.dtype} {b.shape[1:]} a row."
        )
  return jax.tree_util.tree_map_with_path(
      lambda path, *parts: parts[0]
      if of_all_rows(path)
      else jnp.concatenate(parts),
      *states,
  )


def reset_rows(state: Any, rows: jax.Array, fresh: Any) -> Any:
  """Returns a state whose named rows have read nothing.

  Args:
    state: of B rows.
    rows: bool [B], the rows to reset.
    fresh: of `TitansLM.init_state`, of one row or B.

  Raises:
    ValueError: rows of another shape or dtype.
  """
  count = num_rows(state)
  if rows.shape != (count,) or rows.dtype != bool:
    raise ValueError(
        f"rows must be bool [{count}], got {rows.dtype} {rows.shape}."
    )

  def one(path, old, new):
    if of_all_rows(path):
      return old
    return jnp.where(jnp.reshape(rows, (-1,) + (1,) * (old.ndim - 1)), new, old)

  return jax.tree_util.tree_map_with_path(one, state, fresh)


def _pairs(first: Any, second: Any):
  leaves = jax.tree_util.tree_leaves_with_path(first)
  for (path, a), b in zip(leaves, jax.tree.leaves(second), strict=True):
    yield path, a, b
