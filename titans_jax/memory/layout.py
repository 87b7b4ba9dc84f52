# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the tokens of a call stand: behind the open chunk, in whole chunks.

Sequences arrive in pieces of any length, with padding anywhere and each row at
its own place. `align` puts a row's real tokens behind the tokens of its open
chunk (for MAC: its open segment), so that every row starts on a boundary, at
the price of at most one more chunk. Kernels and scans only ever see the whole
aligned chunks; `restore` moves the outputs back.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
T = TypeVar("T")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "mask",
        "starts",
        "offset",
        "position",
        "end",
        "source",
        "place",
    ],
    meta_fields=["length", "size"],
)
@dataclasses.dataclass(frozen=True)
class Layout:
  """Places of a call's T tokens among A = `size` aligned ones.

  None stands for the trivial value, so that fresh training input takes a path
  without any of this.

  Attributes:
    mask: bool [B, A], this call's real tokens; None: all are.
    starts: bool [B, A], first tokens of documents; None: no document starts.
    offset: int32 [B], how many places in front hold tokens of earlier calls;
      None: none in any row.
    position: int32 [B], tokens of its document that each row has read before
      this call; None: fresh rows, which have read none.
    end: int32 [B], the place behind a row's last real token; None: A.
    source: int32 [B, A], which of the T tokens stands at a place (T: none);
      None: the same place, with static padding at the end.
    place: int32 [B, T], the inverse (A: a masked token); None like `source`.
    length: T.
    size: A, a multiple of the unit (chunk or segment).
  """

  mask: Array | None
  starts: Array | None
  offset: Array | None
  position: Array | None
  end: Array | None
  source: Array | None
  place: Array | None
  length: int
  size: int

  def arrange(self, x: Array) -> Array:
    """Moves [B, T, ...] to its places, [B, A, ...]; zeros elsewhere."""
    pad = self.size - self.length if self.source is None else 1
    if pad:
      x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    return x if self.source is None else take_rows(x, self.source)

  def restore(self, y: Array) -> Array:
    """Moves [B, A, ...] back to [B, T, ...]; masked tokens are zero."""
    if self.place is not None:
      pad = [(0, 0), (0, 1)] + [(0, 0)] * (y.ndim - 2)
      return take_rows(jnp.pad(y, pad), self.place)
    y = y[:, : self.length]
    if self.mask is None:
      return y
    mask = self.mask[:, : self.length]
    return jnp.where(mask.reshape(mask.shape + (1,) * (y.ndim - 2)), y, 0)

  def last_start(self) -> Array | None:
    """Returns int32 [B, A], the place of the last document start up to each
    place (-1: the document began in an earlier call); None: no starts."""
    if self.starts is None:
      return None
    numbers = jnp.arange(self.size, dtype=jnp.int32)
    places = jnp.where(self.starts, numbers, -1)
    return jax.lax.cummax(places, axis=1)

  def positions(self) -> Array:
    """Returns the place of every token in its document, int32 [B or 1, A]."""
    positions = jnp.arange(self.size, dtype=jnp.int32)[None]
    last_start = self.last_start()
    restarted = None if last_start is None else positions - last_start
    if self.offset is not None:
      positions = positions - self.offset[:, None]
    if self.position is not None:
      positions = positions + self.position[:, None]
    if last_start is None:
      return positions
    return jnp.where(last_start >= 0, restarted, positions)

  def next_position(self, batch: int) -> Array:
    """Returns `position` as of the end of this call, int32 [B]."""
    shape = (batch, self.size)
    positions = jnp.broadcast_to(self.positions(), shape)
    if self.end is None:
      return positions[:, -1] + 1
    last = jnp.maximum(self.end - 1, 0)[:, None]
    seen = jnp.take_along_axis(positions, last, axis=1)[:, 0] + 1
    # A row without a token at all, here or open, stays where it was.
    before = 0 if self.position is None else self.position
    return jnp.where(self.end > 0, seen, before)

  def closed(self, unit: int) -> Array | None:
    """Returns bool [B, A / unit], the units that end with this call.

    A unit closes if it is full or a new document follows it; None: all close.
    """
    if self.end is None:
      return None
    ends = (jnp.arange(self.size // unit) + 1) * unit
    return ends[None] <= self.end[:, None]

  def resets(self, unit: int) -> Array | None:
    """Returns bool [B, A / unit], the units that start a document, or None."""
    if self.starts is None:
      return None
    starts = self.starts.reshape(self.starts.shape[0], -1, unit)
    return jnp.any(starts, axis=-1)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "starts", "position"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Token:
  """A call of one token a row, which needs no alignment.

  Attributes:
    mask: bool [B], rows that have a token; None: all.
    starts: bool [B], rows whose document starts with it; None: no row.
    position: int32 [B], the token's place in its document.
  """

  mask: Array | None
  starts: Array | None
  position: Array

  def arrange(self, x: Array) -> Array:
    """Returns [B, 1, ...] as it is: its token stands where it belongs."""
    return x

  def restore(self, y: Array) -> Array:
    """Returns [B, 1, ...] with zeros at masked tokens."""
    if self.mask is None:
      return y
    return select_rows(self.mask, y, jnp.zeros_like(y))

  def positions(self) -> Array:
    """Returns `position` as [B, 1], like `Layout.positions`."""
    return self.position[:, None]

  def next_position(self, batch: int) -> Array:
    """Returns how many tokens of its document a row has read now, [B]."""
    step = 1 if self.mask is None else self.mask.astype(jnp.int32)
    return jnp.broadcast_to(self.position + step, (batch,))


def select_rows(rows: Array, new, old):
  """Returns `new` in the rows [B] that are True, leaves [B, ...], else `old`."""
  return jax.tree.map(
      lambda n, o: jnp.where(rows.reshape(-1, *(1,) * (o.ndim - 1)), n, o),
      new,
      old,
  )


def take_rows(x: Array, index: Array) -> Array:
  """Returns x[b, index[b, i]]."""
  return jax.vmap(lambda row, i: row[i])(x, index)


def put_rows(x: Array, rows: Array, first: Array, axis: int = 1) -> Array:
  """Puts rows [B, n, ...] into x [B, N, ...] at first[b] + 0, 1, ..., or along
  another axis than the first behind B."""
  put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1)
  return jax.vmap(put)(x, rows, first)


def rows_at(x: Array, first: Array, size: int, axis: int = 1) -> Array:
  """Returns x[b, first[b] : first[b] + size] of x [B, N, ...], or along another
  axis than the first behind B."""
  take = functools.partial(
      jax.lax.dynamic_slice_in_dim, slice_size=size, axis=axis - 1
  )
  return jax.vmap(take)(x, first)


def put_token(
    arrays: T, token: T, place: Array, mask: Array | None, axis: int = 1
) -> T:
  """Puts a token, leaves of size 1 along the axis, at place[b] in the rows of
  mask [B].

  In place where the arrays are not needed any more: nothing else is written.
  """

  def put(x, new):
    new = new.astype(x.dtype)
    if mask is not None:
      new = select_rows(mask, new, rows_at(x, place, 1, axis))
    return put_rows(x, new, place, axis)

  return jax.tree.map(put, arrays, token)


def concrete(*arrays: Array | None) -> bool:
  """Whether the values can be looked at now, not only traced."""
  return not any(isinstance(x, jax.core.Tracer) for x in arrays)


def check_starts(starts: Array | None, unit: int) -> None:
  """Raises ValueError where a document starts inside a unit, if it can see."""
  if starts is None or not concrete(starts):
    return
  wrong = np.argwhere(
      np.asarray(starts) & (np.arange(starts.shape[1]) % unit > 0)
  )
  if wrong.size:
    row, place = wrong[0]
    raise ValueError(
        f"Documents must start at multiples of {unit} tokens (the chunk; for"
        f" MAC the segment), but in row {row} one starts at token {place}."
        " titans_jax.data packs them so."
    )


def token(mask: Array | None, starts: Array | None, position: Array) -> Token:
  """Returns the place of one token a row.

  Args:
    mask: bool [B, 1], False where a row has none; None: all have one.
    starts: bool [B, 1], rows whose document starts with it; None: no row.
    position: int32 [B], tokens of its document that each row has read.
  """
  if mask is not None:
    mask = mask[:, 0]
  if starts is not None:
    starts = starts[:, 0] if mask is None else starts[:, 0] & mask
    position = jnp.where(starts, 0, position)
  return Token(mask, starts, position)


def align(
    shape: tuple[int, int],
    unit: int,
    *,
    mask: Array | None = None,
    starts: Array | None = None,
    offset: Array | None = None,
    position: Array | None = None,
    packed: bool = False,
) -> Layout:
  """Returns the places of a call's tokens in whole units.

  Args:
    shape: (B, T) of the call.
    unit: tokens of a chunk, or of a segment.
    mask: bool [B, T], False for padding, anywhere; None: all are real.
    starts: bool [B, T], first tokens of documents, at multiples of the unit.
    offset: int32 [B], tokens in each row's open unit; None: no row has any.
    position: int32 [B], tokens of its document each row has read; None: none.
    packed: a promise that tokens already stand on boundaries: nothing is open,
      and tokens are masked only at a document's tail. Then nothing moves.

  Raises:
    ValueError: a document starts inside a unit, or `packed` does not hold; only
      where the values are concrete.
  """
  batch, length = shape
  if mask is not None and starts is not None:
    starts = starts & mask
  check_starts(starts, unit)
  whole = -(-length // unit) * unit
  if offset is None and (mask is None or packed):
    return _packed_layout(shape, whole, unit, mask, starts, position)
  size = whole if offset is None else -(-(length + unit - 1) // unit) * unit
  if starts is not None and offset is not None:
    # The open unit ends early where a document starts.
    size = whole + unit
  if mask is None:
    mask = jnp.ones((batch, length), bool)
  offset_or_0 = jnp.zeros(batch, jnp.int32) if offset is None else offset
  rank = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
  place = offset_or_0[:, None] + rank
  if starts is not None:
    # Documents are counted per row; each begins on a unit's boundary behind
    # the one before it.
    document = jnp.cumsum(starts, axis=1, dtype=jnp.int32)
    rows = jnp.arange(batch)[:, None]
    lengths = jnp.zeros((batch, whole // unit + 1), jnp.int32)
    lengths = lengths.at[rows, document].add(mask.astype(jnp.int32))
    cumsum = functools.partial(jnp.cumsum, axis=1, dtype=jnp.int32)
    before = cumsum(lengths) - lengths
    lengths = lengths.at[:, 0].add(offset_or_0)
    padded = -(-lengths // unit) * unit
    begins = (cumsum(padded) - padded).at[:, 0].set(offset_or_0)
    place = rank + jnp.take_along_axis(begins - before, document, axis=1)
  end = jnp.max(jnp.where(mask, place + 1, 0), axis=1)
  end = jnp.maximum(end, offset_or_0)
  place = jnp.where(mask, place, size)
  source = jnp.full((batch, size + 1), length, jnp.int32)
  source = jax.vmap(
      lambda s, p: s.at[p].set(jnp.arange(length, dtype=jnp.int32))
  )(source, place)
  source = source[:, :size]
  layout = Layout(
      mask=source < length,
      starts=None,
      offset=offset,
      position=position,
      end=end,
      source=source,
      place=place,
      length=length,
      size=size,
  )
  if starts is not None:
    layout = dataclasses.replace(layout, starts=layout.arrange(starts))
  return layout


def _packed_layout(shape, whole, unit, mask, starts, position) -> Layout:
  """The layout of tokens that already stand on boundaries."""
  batch, length = shape
  if mask is not None and concrete(mask, starts):
    _check_packed(np.asarray(mask), starts, unit)
  end = None
  if mask is not None:
    end = jnp.max(
        jnp.where(mask, jnp.arange(length, dtype=jnp.int32) + 1, 0), axis=1
    )
  pad = [(0, 0), (0, whole - length)]
  if whole > length:
    mask = jnp.ones((batch, length), bool) if mask is None else mask
    mask = jnp.pad(mask, pad)
    starts = None if starts is None else jnp.pad(starts, pad)
    end = jnp.full(batch, length, jnp.int32) if end is None else end
  return Layout(
      mask=mask,
      starts=starts,
      offset=None,
      position=position,
      end=end,
      source=None,
      place=None,
      length=length,
      size=whole,
  )


def _check_packed(mask, starts, unit) -> None:
  begins = np.zeros_like(mask) if starts is None else np.array(starts)
  begins[:, 0] = True
  gap = mask[:, 1:] & ~mask[:, :-1] & ~begins[:, 1:]
  if gap.any():
    row, place = np.argwhere(gap)[0]
    raise ValueError(
        "Packed documents may be masked at their tails only, but in row"
        f" {row} token {place + 1} is real, token {place} before it is masked,"
        f" and no document starts between (at a multiple of {unit})."
    )
