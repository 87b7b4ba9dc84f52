# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Causal depthwise convolution with its state (v1 section 4.4)."""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from titans_jax.memory import layout as layout_lib
from titans_jax.memory import state as state_lib

Array = jax.Array


class ConvolutionState(NamedTuple):
  """What a convolution of size s still needs of the past.

  Attributes:
    tail: the last s - 1 inputs, [B, s - 1, C].
    initial: those that a document starts from, [1, s - 1, C].
  """

  tail: Array
  initial: Array

  def broadcast(self, batch_size: int) -> ConvolutionState:
    """Returns a state of one row as one of `batch_size` rows."""
    return self._replace(tail=state_lib.broadcast_rows(self.tail, batch_size))


class CausalConvolution(nn.Module):
  """y_t = sum_j kernel[j] * x_{t - (s - 1) + j}, per channel, without bias.

  Attributes:
    channels: C.
    size: s, the number of taps.
    dtype: of the computation.
    param_dtype: of the kernel.
  """

  channels: int
  size: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def setup(self):
    self.kernel = self.param(
        "kernel",
        nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        (self.size, self.channels),
        self.param_dtype,
    )

  def initial_state(self) -> ConvolutionState:
    """Returns the state before any token, of one row."""
    return initial_state(self.size, self.channels, self.dtype)

  def __call__(
      self,
      x: Array,
      state: ConvolutionState,
      layout: layout_lib.Layout | layout_lib.Token,
  ) -> tuple[Array, ConvolutionState]:
    """Convolves inputs [B, A, C], each document by itself."""
    kernel = self.kernel.astype(self.dtype)
    inputs, state = taps(x.astype(self.dtype), state, layout)
    return sum(kernel[j] * tap for j, tap in enumerate(inputs)), state


def initial_state(size: int, channels: int, dtype: Any) -> ConvolutionState:
  """Returns the state of `size` taps before any token, of one row."""
  zeros = jnp.zeros((1, size - 1, channels), dtype)
  return ConvolutionState(tail=zeros, initial=zeros)


def taps(
    x: Array,
    state: ConvolutionState,
    layout: layout_lib.Layout | layout_lib.Token,
) -> tuple[list[Array], ConvolutionState]:
  """Returns every token's last inputs, each document by itself.

  Args:
    x: inputs [B, A, C].
    state: what stands before them.
    layout: where the tokens stand.

  Returns:
    x_{t - (s - 1)} to x_t for all tokens t, s arrays [B, A, C]; and the state.
  """
  if isinstance(layout, layout_lib.Token):
    return _taps_of_token(x, state, layout)
  past = state.tail.shape[1]
  batch, size, _ = x.shape
  tail = state_lib.broadcast_rows(state.tail, batch)
  padded = jnp.concatenate([tail, x], axis=1)
  if layout.offset is not None:
    padded = layout_lib.put_rows(padded, tail, layout.offset)
  found = [padded[:, j : j + size] for j in range(past + 1)]
  last_start = layout.last_start()
  if last_start is not None:
    since = jnp.arange(size) - last_start
    for j in range(past):
      # Before a document's first token stands the initial tail.
      index = jnp.clip(j + since, 0, past - 1)
      before = state.initial[0][index]
      outside = (last_start >= 0) & (since < past - j)
      found[j] = jnp.where(outside[..., None], before, found[j])
  if layout.end is None:
    new_tail = padded[:, size:]
  else:
    new_tail = layout_lib.rows_at(padded, layout.end, past)
  if last_start is not None:
    end = jnp.full(batch, size) if layout.end is None else layout.end
    new_tail = _behind_start(new_tail, state.initial, last_start, end)
  return found, ConvolutionState(new_tail, state.initial)


def _taps_of_token(
    x: Array, state: ConvolutionState, token: layout_lib.Token
) -> tuple[list[Array], ConvolutionState]:
  tail = state_lib.broadcast_rows(state.tail, x.shape[0])
  if token.starts is not None:
    tail = jnp.where(token.starts[:, None, None], state.initial, tail)
  window = jnp.concatenate([tail, x], axis=1)
  new_tail = window[:, 1:]
  if token.mask is not None:
    new_tail = jnp.where(token.mask[:, None, None], new_tail, state.tail)
  found = jnp.split(window, window.shape[1], axis=1)
  return found, ConvolutionState(new_tail, state.initial)


def _behind_start(
    tail: Array, initial: Array, last_start: Array, end: Array
) -> Array:
  """Fills a tail from `initial` where its document is shorter than the tail."""
  past = tail.shape[1]
  last = jnp.maximum(end - 1, 0)[:, None]
  start = jnp.take_along_axis(last_start, last, axis=1)  # [B, 1]
  # Tail entry j stands at place end - past + j.
  since = end[:, None] - past + jnp.arange(past) - start
  outside = (start >= 0) & (since < 0)
  before = initial[0][jnp.clip(since + past, 0, past - 1)]
  return jnp.where(outside[..., None], before, tail)
