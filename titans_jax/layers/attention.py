# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention with a prefix of persistent tokens (v1 sections 3.3 and 4).

Rotary positions act on queries and keys of the sequence alone. A persistent
token has no position: scores against it use unrotated queries and keys, or its
distance would grow without bound.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Sequence

from absl import logging
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import tuning
from titans_jax.layers import cudnn
from titans_jax.layers import linear
from titans_jax.layers import rotary
from titans_jax.layers import splash
from titans_jax.memory import conditional
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import products
from titans_jax.memory import sharding
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
      document stands at place p mod W. Keys are rotated. No query sees what
      stands at the places still free.
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
    parts: Sequence[KeysValues],
    mask: Array,
) -> Array:
  """Softmax attention over [prefix | parts of the sequence], under any mask.

  A product of scores for each and one softmax: neither keys nor values are
  copied, which for one token is most of the cost.

  Args:
    queries: unrotated, for the prefix, [B, T, H, D].
    rotated: for the sequence, [B, T, H, D].
    prefix: [1, N_p, H, D]; every query sees all of it.
    parts: of the sequence, [B, S, H, D] each.
    mask: bool [B or 1, T, S], True where a query sees a key, of each part.

  Returns:
    [B, T, H, D].
  """
  dtype = products.at_least_float32(queries.dtype)
  product = functools.partial(jnp.einsum, preferred_element_type=dtype)
  scores = [product("bthd,nhd->bhtn", queries, prefix.keys[0])]
  for part in parts:
    score = product("bthd,bshd->bhts", rotated, part.keys)
    scores.append(jnp.where(mask[:, None], score, jnp.finfo(dtype).min))
  ends = np.cumsum([score.shape[-1] for score in scores])[:-1]
  scores = jnp.concatenate(scores, axis=-1) * queries.shape[-1] ** -0.5
  weights = jax.nn.softmax(scores, axis=-1).astype(queries.dtype)
  to_prefix, *to_parts = jnp.split(weights, ends, axis=-1)
  # Heads first, as a product gives them: else XLA turns the values instead.
  outputs = product("bhtn,nhd->bhtd", to_prefix, prefix.values[0])
  for weights, part in zip(to_parts, parts):
    outputs += product("bhts,bshd->bhtd", weights, part.values)
  return jnp.swapaxes(outputs, 1, 2).astype(queries.dtype)


def attend_causally(
    queries: Array,
    rotated: Array,
    prefix: KeysValues,
    parts: Sequence[KeysValues],
    positions: Array | None = None,
    *,
    window: int,
) -> Array:
  """Softmax attention over the prefix and the keys behind every query.

  On TPU by JAX's splash kernels, on NVIDIA GPUs by cuDNN; elsewhere, and where
  `why_not` of either has a reason, by `attend` in blocks of the window. The log
  says once which.

  Args:
    queries: unrotated, for the prefix, [B, T, H, D].
    rotated: for the sequence, [B, T, H, D].
    prefix: [1, N_p, H, D]; every query sees all of it.
    parts: of the sequence, [B, S, H, D] each. Every part ends at the last
      query, and a query sees `window` keys of it, the last at its own place.
    positions: int32 [B or 1, T], the place of each query in its document: how
      far back it sees at most; None: as far as the keys go.
    window: W, static.

  Returns:
    [B, T, H, D].
  """
  run = functools.partial(_attend_in_blocks, window=window)
  if tuning.gpu_kind() is not None:
    platform, kernel = "cuda", cudnn.attend
    reason = cudnn.why_not(queries, parts, positions)
  else:
    platform, kernel = "tpu", splash.attend
    reason = splash.why_not(queries)
  if reason is None:
    kernels = {platform: functools.partial(kernel, window=window)}
    run = functools.partial(jax.lax.platform_dependent, **kernels, default=run)
    _log_once(f"Attention: kernels on {platform}, none elsewhere.")
  else:
    _log_once(f"Attention without kernels, on {platform} too: {reason}.")
  return sharding.over_rows_and_heads(
      run, queries, rotated, prefix, tuple(parts), positions, heads=2
  )


@functools.cache
def _log_once(message: str) -> None:
  logging.info(message)


def _attend_in_blocks(queries, rotated, prefix, parts, positions, *, window):
  """`attend_causally` by `attend`; time and memory are linear in T."""
  batch, length, *_ = queries.shape
  size = parts[0].keys.shape[1]
  if positions is None:
    positions = jnp.arange(size - length, size)[None]
  if length <= window:
    mask = _behind_mask(positions, size, window)
    return attend(queries, rotated, prefix, parts, mask)
  # A block of queries sees keys of its own block and of the one before it.
  pad = -length % window
  blocks = (length + pad) // window

  def pad_to(x, front):
    ends = [(0, 0)] * x.ndim
    ends[1] = (front, pad)
    return jnp.pad(x, ends)

  def fold(x):  # [B, T, ...] -> [B * blocks, W, ...]
    return pad_to(x, 0).reshape(batch * blocks, window, *x.shape[2:])

  def with_previous(x):  # [B, S, ...] -> [B * blocks, 2 W, ...]
    x = pad_to(x, length + window - size)
    x = x.reshape(batch, blocks + 1, window, *x.shape[2:])
    both = jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2)
    return both.reshape(batch * blocks, 2 * window, *x.shape[3:])

  parts = jax.tree.map(with_previous, parts)
  positions = jnp.broadcast_to(positions, (batch, length))
  mask = _behind_mask(fold(positions), 2 * window, window)
  outputs = attend(fold(queries), fold(rotated), prefix, parts, mask)
  outputs = outputs.reshape(batch, length + pad, *outputs.shape[2:])
  return outputs[:, :length]


def _behind_mask(positions: Array, size: int, window: int) -> Array:
  """Returns bool [B, T, S] for T queries at the end of S keys.

  A document's tokens stand side by side, so a key lies in the query's document
  exactly if it is no further back than the query's position in it.
  """
  length = positions.shape[1]
  behind = jnp.arange(length)[:, None] + (size - length) - jnp.arange(size)
  inside = (behind >= 0) & (behind < window)
  return inside & (behind <= positions[..., None])


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
    """Attends over inputs [B, A, d]."""
    if isinstance(layout, layout_lib.Token):
      return self._step(x, state, layout)
    batch, _, _ = x.shape
    positions = layout.positions()
    queries = self.queries(x)
    rotated = self.rotate(queries, positions)
    keys, values = self.keys_values(x)
    new = KeysValues(self.rotate(keys, positions), values)
    history = self._with_history(new, state, layout)
    fresh = layout.position is None
    outputs = attend_causally(
        queries,
        rotated,
        state.prefix,
        # Fresh rows have no history to look at.
        [new if fresh else history],
        None if fresh and layout.starts is None else positions,
        window=self.window,
    )
    return self.output(outputs), self._next_state(history, state, layout, batch)

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
    ring = layout_lib.put_token(ring, new, place, token.mask)
    behind = (positions - jnp.arange(self.window)) % self.window
    seen = behind <= positions
    outputs = attend(queries, rotated, state.prefix, [ring], seen[:, None])
    return self.output(outputs), WindowState(ring, state.prefix)


def clear_rows(rows: Array | None, caches):
  """Returns caches, leaves [B, ...], with zeros in the rows that are True.

  For documents that start: masks hide what stands in a cache, but not that it
  is infinite or not a number.
  """
  if rows is None:
    return caches

  def clear(caches, rows):
    zeros = jax.tree.map(jnp.zeros_like, caches)
    return layout_lib.select_rows(rows, zeros, caches)

  return conditional.change_if(clear, jnp.any(rows), caches, rows)
