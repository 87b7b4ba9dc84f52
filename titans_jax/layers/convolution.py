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
    zeros = jnp.zeros((1, self.size - 1, self.channels), self.dtype)
    return ConvolutionState(tail=zeros, initial=zeros)

  def __call__(
      self,
      x: Array,
      state: ConvolutionState,
      layout: layout_lib.Layout | layout_lib.Token,
  ) -> tuple[Array, ConvolutionState]:
    """Convolves inputs [B, A, C], each document by itself."""
    if isinstance(layout, layout_lib.Token):
      return self._step(x, state, layout)
    kernel = self.kernel.astype(self.dtype)
    past = self.size - 1
    x = x.astype(self.dtype)
    batch, size, _ = x.shape
    tail = state_lib.broadcast_rows(state.tail, batch)
    padded = jnp.concatenate([tail, x], axis=1)
    if layout.offset is not None:
      padded = layout_lib.put_rows(padded, tail, layout.offset)
    taps = [padded[:, j : j + size] for j in range(self.size)]
    last_start = layout.last_start()
    if last_start is not None:
      since = jnp.arange(size) - last_start
      for j in range(past):
        # Before a document's first token stands the initial tail.
        index = jnp.clip(j + since, 0, past - 1)
        before = state.initial[0][index]
        outside = (last_start >= 0) & (since < past - j)
        taps[j] = jnp.where(outside[..., None], before, taps[j])
    y = sum(kernel[j] * tap for j, tap in enumerate(taps))
    if layout.end is None:
      new_tail = padded[:, size:]
    else:
      new_tail = layout_lib.rows_at(padded, layout.end, past)
    if last_start is not None:
      end = jnp.full(batch, size) if layout.end is None else layout.end
      new_tail = _behind_start(new_tail, state.initial, last_start, end)
    return y, ConvolutionState(new_tail, state.initial)

  def _step(
      self, x: Array, state: ConvolutionState, token: layout_lib.Token
  ) -> tuple[Array, ConvolutionState]:
    kernel = self.kernel.astype(self.dtype)
    tail = state_lib.broadcast_rows(state.tail, x.shape[0])
    if token.starts is not None:
      tail = jnp.where(token.starts[:, None, None], state.initial, tail)
    window = jnp.concatenate([tail, x.astype(self.dtype)], axis=1)
    y = jnp.sum(window * kernel, axis=1, keepdims=True)
    new_tail = window[:, 1:]
    if token.mask is not None:
      new_tail = jnp.where(token.mask[:, None, None], new_tail, state.tail)
    return y, ConvolutionState(new_tail, state.initial)


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
