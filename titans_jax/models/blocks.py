# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Llama-style blocks around a mixer: x + Mixer(norm(x)), then x + SwiGLU."""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from titans_jax import memory as memory_lib
from titans_jax.layers import attention
from titans_jax.layers import feed_forward
from titans_jax.layers import linear
from titans_jax.layers import neural_memory
from titans_jax.layers import recompute
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import sharding
from titans_jax.models import config as config_lib
from titans_jax.models import memory_as_context
from titans_jax.models import mixers

Array = jax.Array

MIXERS = {
    "mac": memory_as_context.MemoryAsContext,
    "mag": mixers.MemoryAsGate,
    "mal": mixers.MemoryAsLayer,
    "lmm": mixers.LongTermMemory,
    "transformer": mixers.AttentionOnly,
}


_STATES = {
    "mac": memory_as_context.MACState,
    "mag": mixers.MemoryWindowState,
    "mal": mixers.MemoryWindowState,
    "lmm": neural_memory.NeuralMemoryState,
    "transformer": attention.WindowState,
}


class BlockState(NamedTuple):
  """State of one block.

  Attributes:
    position: tokens of its document that each row has read, int32 [B].
    document: id of the last token's document, int32 [B]; -1: none was given.
    mixer: state of the mixer.
  """

  position: Array
  document: Array
  mixer: Any

  def broadcast(self, batch_size: int) -> BlockState:
    """Returns a state of one row as one of `batch_size` rows."""
    return BlockState(
        jnp.broadcast_to(self.position, batch_size),
        jnp.broadcast_to(self.document, batch_size),
        self.mixer.broadcast(batch_size),
    )


def check_state(state: BlockState, config: config_lib.TitansConfig) -> None:
  """Raises ValueError for the state of a model of another form."""
  mixer = state.mixer
  if not isinstance(mixer, _STATES[config.variant]):
    raise ValueError(
        f"The state is that of another variant than {config.variant!r}."
    )
  parts = jax.tree.leaves(
      mixer,
      is_leaf=lambda x: isinstance(
          x, (memory_lib.MemoryState, attention.WindowState)
      ),
  )
  for part in parts:
    if isinstance(part, memory_lib.MemoryState):
      neural_memory.check_chunk_size(part, config.chunk_size)
    if isinstance(part, attention.WindowState):
      _check_places(part.ring, config.window or config.max_length, "a window")
  if isinstance(mixer, memory_as_context.MACState):
    _check_places(mixer.sequence, config.segment_length, "segments")


def _check_places(cache, expected: int, name: str) -> None:
  found = cache.keys.shape[1]
  if found != expected:
    raise ValueError(
        f"The state is that of a model with {name} of {found} tokens, but this"
        f" one has {expected}."
    )


class Block(nn.Module):
  """One block of a model, with persistent tokens of its own."""

  config: config_lib.TitansConfig

  def setup(self):
    config = self.config
    self.mixer_norm = linear.rms_norm(config)
    self.mixer = MIXERS[config.variant](config)
    self.feed_forward_norm = linear.rms_norm(config)
    self.feed_forward = recompute.light(feed_forward.SwiGLU)(
        config.ffn_dim,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        out_scale=mixers.out_scale(config),
    )
    shape = config.num_persistent, config.model_dim
    if config.num_persistent:
      self.persistent = self.param(
          "persistent", nn.initializers.normal(1.0), shape, config.param_dtype
      )
    else:  # A parameter of no size cannot be saved.
      self.persistent = jnp.zeros(shape, config.param_dtype)

  def initial_state(self, batch_size: int) -> BlockState:
    """Returns the state of rows that have read nothing (but P)."""
    state = BlockState(
        position=jnp.zeros(1, jnp.int32),
        document=jnp.full(1, -1, jnp.int32),
        mixer=self.mixer.initial_state(
            self.persistent.astype(self.config.dtype)
        ),
    )
    return state.broadcast(batch_size)

  def __call__(
      self,
      x: Array,
      state: BlockState,
      layout: layout_lib.Layout | layout_lib.Token,
      document: Array,
      update_memory: bool = True,
  ) -> tuple[Array, BlockState, neural_memory.Gauges | None]:
    """Maps aligned tokens [B, A, d], or one token a row.

    Args:
      x: [B, A, d].
      state: of the block.
      layout: where the tokens stand.
      document: int32 [B], the last token's document behind this call.
      update_memory: False: reads without learning.
    """
    y, mixer, gauges = self.mixer(
        self.mixer_norm(x), state.mixer, layout, update_memory
    )
    x = x + y
    x = x + self.feed_forward(self.feed_forward_norm(x))
    position = layout.next_position(x.shape[0])
    return x, BlockState(position, document, mixer), gauges


def over_layers(config: config_lib.TitansConfig, body):
  """Scans body(block, carry, x) over the blocks' stacked parameters."""
  return nn.scan(
      body,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=config.num_layers,
      check_constancy_invariants=False,  # It would trace the blocks twice.
  )


def read_fresh(
    block: Block,
    x: Array,
    config: config_lib.TitansConfig,
    tail_mask: Array | None = None,
) -> tuple[Array, neural_memory.Gauges | None]:
  """Runs all blocks over whole sequences that start with x.

  Args:
    block: with the blocks' stacked parameters.
    x: [B, T, d].
    config: of the blocks.
    tail_mask: bool [B, T], False for padding, which stands behind a row's tokens
      only.

  Returns:
    [B, T, d], where what stands at padding means nothing; and the gauges,
    [num_layers] each (None without memory).

  Raises:
    ValueError: full attention cannot hold so many tokens.
  """
  batch, length, _ = x.shape
  full = config.variant == "transformer" and config.window is None
  if full and length > config.max_length:
    raise ValueError(
        f"Full attention holds max_length={config.max_length} tokens, but a row"
        f" has {length}. Set max_length, or a window."
    )
  layout = layout_lib.align(
      (batch, length), config.unit, mask=tail_mask, packed=True
  )
  document = jnp.full(batch, -1, jnp.int32)

  def body(block, x, _):
    state = block.initial_state(batch)
    x, _, gauges = block(x, state, layout, document)
    return sharding.constrain(x), gauges

  if config.remat:
    body = nn.remat(body, prevent_cse=False)
  x, gauges = over_layers(config, body)(block, layout.arrange(x), None)
  return layout.restore(x), gauges
