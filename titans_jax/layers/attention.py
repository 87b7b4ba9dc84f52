# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention with a prefix of persistent tokens (v1 sections 3.3 and 4).

Rotary positions act on queries and keys of the sequence alone. A persistent
token has no position: scores against it use unrotated queries and keys, or its
distance would grow without bound.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from titans_jax.layers import linear
from titans_jax.layers import rotary
from titans_jax.memory import conditional
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import state as state_lib

Array = jax.Array


class KeysValues(NamedTuple):
  """Keys and values, [B, S, H, D] each."""

  keys: Array
  values: Array


class WindowState(NamedTuple):
  """State of `WindowAttention`.

  Attributes:
    ring: the last `window` tokens, [B, W, H, D]; a token at position p of its
      document stands at place p mod W. Keys are rotated.
    prefix: the persistent tokens, [1, N_p, H, D], unrotated.
  """

  ring: KeysValues
  prefix: KeysValues

  def broadcast(self, batch_size: int) -> WindowState:
    """Returns a state of one row as one of `batch_size` rows."""
    return self._replace(ring=state_lib.broadcast_rows(self.ring, batch_size))


def attend(
    queries: Array,
    rotated: Array,
    prefix: KeysValues,
    sequence: KeysValues,
    mask: Array,
) -> Array:
  """Softmax attention over [prefix | sequence].

  Args:
    queries: unrotated, for the prefix, [B, T, H, D].
    rotated: for the sequence, [B, T, H, D].
    prefix: [1, N_p, H, D]; every query sees all of it.
    sequence: [B, S, H, D].
    mask: bool [B or 1, T, S], True where a query sees a key of the sequence.

  Returns:
    [B, T, H, D].
  """
  batch, _, _, head_dim = queries.shape
  keys, values = sequence
  size = prefix.keys.shape[1]
  if size:
    # One softmax over both in one call: each kind of score gets channels of
    # its own, where the other kind's keys are zero.
    prefix = state_lib.broadcast_rows(prefix, batch)
    queries = jnp.concatenate([rotated, queries], axis=-1)
    keys = jnp.concatenate(
        [
            jnp.concatenate([jnp.zeros_like(prefix.keys), prefix.keys], -1),
            jnp.concatenate([keys, jnp.zeros_like(keys)], -1),
        ],
        axis=1,
    )
    values = jnp.concatenate([prefix.values, values], axis=1)
    mask = jnp.pad(mask, [(0, 0), (0, 0), (size, 0)], constant_values=True)
  else:
    queries = rotated
  mask = mask[:, None]
  if queries.dtype == jnp.float64:
    # jax.nn computes its softmax in float32 whatever the inputs are.
    queries = queries * (queries.shape[-1] / head_dim) ** 0.5
    return nn.dot_product_attention(queries, keys, values, mask=mask)
  padding = queries.shape[-1] - head_dim
  if padding:  # jax.nn wants values as wide as keys.
    values = jnp.pad(values, [(0, 0)] * 3 + [(0, padding)])
  outputs = jax.nn.dot_product_attention(
      queries, keys, values, mask=mask, scale=head_dim**-0.5
  )
  return outputs[..., :head_dim]


class Attention(nn.Module):
  """Projections that every kind of attention here shares.

  Attributes:
    model_dim: d.
    num_heads: H.
    head_dim: D, even.
    rope_theta: base of the rotary frequencies.
    dtype: of the computation.
    param_dtype: of the parameters.
    out_scale: scale of the output projection's initial deviation.
  """

  model_dim: int
  num_heads: int
  head_dim: int
  rope_theta: float = 10_000.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  out_scale: float = 1.0

  def setup(self):
    width = self.num_heads * self.head_dim
    self.query_key = linear.TwinDense(width, self.dtype, self.param_dtype)
    self.value = linear.dense(width, self)
    self.out = linear.dense(self.model_dim, self, scale=self.out_scale)

  def _heads(self, x: Array) -> Array:
    return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)

  def queries(self, x: Array) -> Array:
    """Maps [B, T, d] to unrotated queries [B, T, H, D]."""
    return self._heads(self.query_key(x, 0))

  def keys_values(self, x: Array) -> KeysValues:
    """Maps [B, T, d] to unrotated keys and values [B, T, H, D]."""
    return KeysValues(
        self._heads(self.query_key(x, 1)), self._heads(self.value(x))
    )

  def rotate(self, x: Array, positions: Array) -> Array:
    """Rotates [B, T, H, D] by positions [B or 1, T]."""
    return rotary.rotate(x, positions, self.rope_theta)

  def output(self, y: Array) -> Array:
    """Maps [B, T, H, D] to [B, T, d]."""
    return self.out(y.reshape(*y.shape[:-2], -1))


class WindowAttention(Attention):
  """Sliding-window attention (v1 section 4.2): a token sees itself, the
  window - 1 tokens of its document before it, and all persistent tokens.

  Attributes:
    window: W.
  """

  window: int = 2048

  def initial_state(self, prefix: Array) -> WindowState:
    """Returns the state before any token, of one row.

    Args:
      prefix: persistent tokens [N_p, d]; N_p may be 0.
    """
    shape = (1, self.window, self.num_heads, self.head_dim)
    zeros = jnp.zeros(shape, self.dtype)
    return WindowState(
        ring=KeysValues(zeros, zeros), prefix=self.keys_values(prefix[None])
    )

  def __call__(
      self,
      x: Array,
      state: WindowState,
      layout: layout_lib.Layout | layout_lib.Token,
  ) -> tuple[Array, WindowState]:
    """Attends over inputs [B, A, d], in blocks of the window."""
    if isinstance(layout, layout_lib.Token):
      return self._step(x, state, layout)
    batch, size, _ = x.shape
    window = self.window
    positions = layout.positions()
    queries = self.queries(x)
    rotated = self.rotate(queries, positions)
    keys, values = self.keys_values(x)
    new = KeysValues(self.rotate(keys, positions), values)
    history = self._with_history(new, state, layout)
    if size > window:
      pad = -size % window
      blocks = (size + pad) // window

      def pad_end(x):
        return jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))

      def fold(x):  # [B, A, ...] -> [B * blocks, W, ...]
        return pad_end(x).reshape(batch * blocks, window, *x.shape[2:])

      def with_previous(x):  # [B, W + A, ...] -> [B * blocks, 2 W, ...]
        x = pad_end(x).reshape(batch, blocks + 1, window, *x.shape[2:])
        both = jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2)
        return both.reshape(batch * blocks, 2 * window, *x.shape[3:])

      sequence = KeysValues(*map(with_previous, history))
      rows = jnp.broadcast_to(positions, (batch, size))
      mask = self._mask(fold(rows), 2 * window)
      outputs = attend(
          fold(queries), fold(rotated), state.prefix, sequence, mask
      )
      outputs = outputs.reshape(batch, size + pad, *outputs.shape[2:])
      outputs = outputs[:, :size]
    else:
      # Fresh rows have no history to look at.
      sequence = new if layout.position is None else history
      mask = self._mask(positions, sequence.keys.shape[1])
      outputs = attend(queries, rotated, state.prefix, sequence, mask)
    return self.output(outputs), self._next_state(history, state, layout, batch)

  def _mask(self, positions: Array, size: int) -> Array:
    """Returns bool [B, T, S] for T queries at the end of S keys.

    A document's tokens stand side by side, so a key lies in the query's
    document exactly if it is no further back than the query's position in it.
    """
    length = positions.shape[1]
    behind = jnp.arange(length)[:, None] + (size - length) - jnp.arange(size)
    inside = (behind >= 0) & (behind < self.window)
    return inside & (behind <= positions[..., None])

  def _with_history(self, new, state, layout) -> KeysValues:
    """Returns [B, W + A, H, D]: the window before the call, then the call."""
    batch = new.keys.shape[0]
    ring = state_lib.broadcast_rows(state.ring, batch)
    history = jax.tree.map(
        lambda r, x: jnp.concatenate([jnp.zeros_like(r), x], axis=1), ring, new
    )
    if layout.position is None:
      return history
    # Unrolled, a row's ring ends where its new tokens begin.
    order = (jnp.arange(self.window) + layout.position[:, None]) % self.window
    first = layout.offset
    if first is None:
      first = jnp.zeros(batch, jnp.int32)
    return jax.tree.map(
        lambda h, r: layout_lib.put_rows(
            h, layout_lib.take_rows(r, order), first
        ),
        history,
        ring,
    )

  def _next_state(self, history, state, layout, batch) -> WindowState:
    window = self.window
    position = layout.next_position(batch)[:, None]
    end = jnp.full(batch, layout.size) if layout.end is None else layout.end
    order = (jnp.arange(window) - position) % window
    seen = position - window + order >= 0

    def roll(h):
      last = layout_lib.rows_at(h, end, window)
      rows = layout_lib.take_rows(last, order)
      return jnp.where(seen[..., None, None], rows, 0)

    return WindowState(jax.tree.map(roll, history), state.prefix)

  def _step(
      self, x: Array, state: WindowState, token: layout_lib.Token
  ) -> tuple[Array, WindowState]:
    positions = token.positions()
    queries = self.queries(x)
    rotated = self.rotate(queries, positions)
    keys, values = self.keys_values(x)
    new = KeysValues(self.rotate(keys, positions), values)
    place = token.position % self.window
    ring = clear_rows(token.starts, state.ring)
    ring = jax.tree.map(
        lambda r, x: put_token(r, x, place, token.mask), ring, new
    )
    behind = (positions - jnp.arange(self.window)) % self.window
    seen = behind <= positions
    outputs = attend(queries, rotated, state.prefix, ring, seen[:, None])
    return self.output(outputs), WindowState(ring, state.prefix)


def clear_rows(rows: Array | None, caches):
  """Returns caches, leaves [B, ...], with zeros in the rows that are True."""
  if rows is None:
    return caches

  def clear(caches, rows):
    return jax.tree.map(
        lambda c: jnp.where(rows.reshape(-1, *(1,) * (c.ndim - 1)), 0, c),
        caches,
    )

  return conditional.change_if(clear, jnp.any(rows), caches, rows)


def put_token(cache: Array, token: Array, place: Array, mask) -> Array:
  """Puts a token [B, 1, ...] at place[b] of [B, S, ...], where it is real."""
  token = token.astype(cache.dtype)
  if mask is not None:
    old = layout_lib.rows_at(cache, place, 1)
    mask = mask.reshape((-1,) + (1,) * (token.ndim - 1))
    token = jnp.where(mask, token, old)
  return layout_lib.put_rows(cache, token, place)
