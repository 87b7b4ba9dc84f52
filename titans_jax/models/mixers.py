# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What mixes tokens in a block: LMM, MAL, MAG and plain attention (v1 section 4).

Every mixer has the same two methods. `initial_state(prefix)` returns the state
that a document starts from, of one row: the persistent tokens [N_p, d] are read
then and only then. `__call__(x, state, layout, update_memory)` maps aligned
tokens [B, A, d], or one token a row, and returns the memory's gauges too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import linen as nn
import jax

from titans_jax.layers import attention as attention_lib
from titans_jax.layers import linear
from titans_jax.layers import neural_memory as neural_memory_lib
from titans_jax.layers import recompute
from titans_jax.models import config as config_lib

Array = jax.Array
Gauges = neural_memory_lib.Gauges
TitansConfig = config_lib.TitansConfig


def neural_memory(config: TitansConfig) -> neural_memory_lib.NeuralMemory:
  """Returns the memory layer that a configuration asks for."""
  return neural_memory_lib.NeuralMemory(
      model_dim=config.model_dim,
      num_heads=config.num_heads,
      head_dim=config.head_dim,
      chunk_size=config.chunk_size,
      net=config.memory,
      momentum=config.momentum,
      forget=config.forget,
      gates_per_layer=config.gates_per_layer,
      gates_per_chunk=config.gates_per_chunk,
      max_learning_rate=config.max_learning_rate,
      forget_bias=config.forget_bias,
      max_grad_norm=config.max_grad_norm,
      normalize_values=config.normalize_values,
      read_before_write=config.read_before_write,
      conv_size=config.conv_size,
      checkpoint_every=config.checkpoint_every,
      implementation=config.implementation,
      dtype=config.dtype,
      param_dtype=config.param_dtype,
      out_scale=out_scale(config),
  )


def attention_sizes(config: TitansConfig) -> dict[str, Any]:
  """Returns the attributes that every attention layer here shares."""
  return {
      "model_dim": config.model_dim,
      "num_heads": config.num_heads,
      "head_dim": config.head_dim,
      "rope_theta": config.rope_theta,
      "dtype": config.dtype,
      "param_dtype": config.param_dtype,
      "out_scale": out_scale(config),
  }


def window_attention(config: TitansConfig) -> attention_lib.WindowAttention:
  """Returns the attention layer that a configuration asks for.

  Full attention is a window of all tokens that can be held.
  """
  window = config.max_length if config.window is None else config.window
  return attention_lib.WindowAttention(window=window, **attention_sizes(config))


def out_scale(config: TitansConfig) -> float:
  """Keeps the residual stream's variance independent of the depth."""
  return (2 * config.num_layers) ** -0.5


class Gate(nn.Module):
  """norm(y) * sigmoid(norm(m)) with learned scales: the paper's y (x) m."""

  config: TitansConfig

  @nn.compact
  def __call__(self, y: Array, m: Array) -> Array:
    """Gates y [..., d] by m [..., d]."""
    config = self.config
    dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
    y = nn.RMSNorm(1e-6, name="attention_norm", **dtypes)(y)
    m = nn.RMSNorm(1e-6, name="memory_norm", **dtypes)(m)
    return y * nn.sigmoid(m)


class LongTermMemory(nn.Module):
  """LMM: the neural memory alone, on [P | x] (v1 section 4.3)."""

  config: TitansConfig

  def setup(self):
    self.memory = neural_memory(self.config)

  def initial_state(self, prefix: Array):
    return self.memory.initial_state(prefix)[0]

  def __call__(self, x: Array, state, layout, update_memory: bool):
    return self.memory.apply_aligned(x, state, layout, update_memory)


class MemoryWindowState(NamedTuple):
  """State of a mixer with a memory and sliding-window attention."""

  memory: neural_memory_lib.NeuralMemoryState
  attention: attention_lib.WindowState

  def broadcast(self, batch_size: int) -> MemoryWindowState:
    """Returns a state of one row as one of `batch_size` rows."""
    return MemoryWindowState(*(s.broadcast(batch_size) for s in self))


class MemoryAsLayer(nn.Module):
  """MAL: the memory on [P | x], then sliding-window attention on its output
  (v1 equations 29 to 31). Attention's prefix is the memory's output at P."""

  config: TitansConfig

  def setup(self):
    self.memory = neural_memory(self.config)
    self.norm = linear.rms_norm(self.config)
    self.attention = window_attention(self.config)

  def initial_state(self, prefix: Array) -> MemoryWindowState:
    memory, outputs = self.memory.initial_state(prefix)
    prefix = prefix if outputs is None else self.norm(outputs)
    return MemoryWindowState(memory, self.attention.initial_state(prefix))

  def __call__(
      self, x: Array, state: MemoryWindowState, layout, update_memory: bool
  ) -> tuple[Array, MemoryWindowState, Gauges]:
    m, memory, gauges = self.memory.apply_aligned(
        x, state.memory, layout, update_memory
    )
    y, attention = self.attention(self.norm(m), state.attention, layout)
    return y, MemoryWindowState(memory, attention), gauges


class MemoryAsGate(nn.Module):
  """MAG: sliding-window attention and the memory side by side on [P | x],
  the one gated by the other (v1 equations 26 to 28)."""

  config: TitansConfig

  def setup(self):
    self.memory = neural_memory(self.config)
    self.attention = window_attention(self.config)
    self.gate = recompute.light(Gate)(self.config)

  def initial_state(self, prefix: Array) -> MemoryWindowState:
    memory, _ = self.memory.initial_state(prefix)
    return MemoryWindowState(memory, self.attention.initial_state(prefix))

  def __call__(
      self, x: Array, state: MemoryWindowState, layout, update_memory: bool
  ) -> tuple[Array, MemoryWindowState, Gauges]:
    y, attention = self.attention(x, state.attention, layout)
    m, memory, gauges = self.memory.apply_aligned(
        x, state.memory, layout, update_memory
    )
    return self.gate(y, m), MemoryWindowState(memory, attention), gauges


class AttentionOnly(nn.Module):
  """Transformer++: attention alone, over a window or all tokens."""

  config: TitansConfig

  def setup(self):
    self.attention = window_attention(self.config)

  def initial_state(self, prefix: Array) -> attention_lib.WindowState:
    return self.attention.initial_state(prefix)

  def __call__(
      self, x: Array, state, layout, update_memory: bool
  ) -> tuple[Array, attention_lib.WindowState, None]:
    del update_memory  # there is none
    y, state = self.attention(x, state, layout)
    return y, state, None
