# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""MAC: memory as a context (v1 section 4.1, equations 21 to 25), made causal.

Read literally, the paper lets position i of a segment see what was recalled for
later positions (every h_j is visible to every row), and a memory that has
already been written with the whole segment. Here a segment of C tokens goes

    recall   h_i = M_{W}(q(x_i)),     W the weights at the segment's start
    attend   y_i = attention of x_i over [P | h_1..h_i | x_1..x_i]
    write    k, v and gates from y, token by token
    read     m_i = M_{W_i}(q(y_i)),   after y_i's own write
    gate     o_i = norm(y_i) * sigmoid(norm(m_i))

so that no output sees a later token. P is seen by attention and not written.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from titans_jax.layers import attention as attention_lib
from titans_jax.layers import neural_memory as neural_memory_lib
from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import conditional
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import scanning
from titans_jax.memory import state as state_lib
from titans_jax.models import config as config_lib
from titans_jax.models import mixers

Array = jax.Array
ConvolutionState = neural_memory_lib.ConvolutionState
KeysValues = attention_lib.KeysValues
Layout = layout_lib.Layout


class MACState(NamedTuple):
  """State of `MemoryAsContext`.

  Attributes:
    memory: the memory, and the convolutions over y.
    recall: convolution state of the recall's query path, over x.
    segment_start: W at the open segment's start, L arrays [B, H, d_in, d_out].
    recalled: keys and values of h for the open segment, [B, C, H, D]; no query
      sees what stands at the places still free.
    sequence: the same of x.
    prefix: keys and values of the persistent tokens, [1, N_p, H, D].
  """

  memory: neural_memory_lib.NeuralMemoryState
  recall: ConvolutionState | None
  segment_start: tuple[Array, ...]
  recalled: KeysValues
  sequence: KeysValues
  prefix: KeysValues

  def broadcast(self, batch_size: int) -> MACState:
    """Returns a state of one row as one of `batch_size` rows."""
    segment_start, recalled, sequence = state_lib.broadcast_rows(
        (self.segment_start, self.recalled, self.sequence), batch_size
    )
    return MACState(
        memory=self.memory.broadcast(batch_size),
        recall=self.recall and self.recall.broadcast(batch_size),
        segment_start=segment_start,
        recalled=recalled,
        sequence=sequence,
        prefix=self.prefix,
    )


class _Carry(NamedTuple):
  """What passes from segment to segment."""

  memory: chunk_lib.Carry
  segment_start: tuple[Array, ...]
  query: ConvolutionState | None
  write: neural_memory_lib.WriteState


class _Segment(NamedTuple):
  """One segment's share of what is computed for all segments at once."""

  number: Array
  x: Array
  recall_queries: Array
  queries: Array
  rotated: Array
  sequence: KeysValues
  mask: Array | None
  starts: Array | None


class MemoryAsContext(nn.Module):
  """MAC: recalled memory as context of a segment's attention."""

  config: config_lib.TitansConfig

  def setup(self):
    self.memory = mixers.neural_memory(self.config)
    self.attention = attention_lib.Attention(
        **mixers.attention_sizes(self.config)
    )
    self.gate = mixers.Gate(self.config)

  def initial_state(self, prefix: Array) -> MACState:
    config = self.config
    memory, _ = self.memory.initial_state()
    shape = (1, config.segment_length, config.num_heads, config.head_dim)
    zeros = jnp.zeros(shape, config.dtype)
    return MACState(
        memory=memory,
        recall=memory.query,
        segment_start=memory.memory.chunk_start.weights,
        recalled=KeysValues(zeros, zeros),
        sequence=KeysValues(zeros, zeros),
        prefix=self.attention.keys_values(prefix[None]),
    )

  def __call__(
      self,
      x: Array,
      state: MACState,
      layout: Layout | layout_lib.Token,
      update_memory: bool,
  ) -> tuple[Array, MACState, neural_memory_lib.Gauges]:
    """Maps x [B, A, d], aligned to segments, or one token a row."""
    if isinstance(layout, layout_lib.Token):
      return self._step(x, state, layout, update_memory)
    batch, size, _ = x.shape
    length = self.config.segment_length
    count = size // length

    def fold(x):  # [B, A, ...] -> [segments, B, C, ...]
      x = x.reshape(batch, count, length, *x.shape[2:])
      return jnp.moveaxis(x, 1, 0)

    def join(y):
      y = jnp.moveaxis(y, 0, 1)
      return y.reshape(batch, size, *y.shape[3:])

    # What depends on x alone is computed for all segments at once.
    recall_queries, recall = self.memory.queries(x, state.recall, layout)
    places = jnp.arange(size)[None] % length
    queries = self.attention.queries(x)
    sequence = self.rotated_keys_values(x, places)
    if layout.offset is not None:
      first = jax.tree.map(lambda s: s[:, :length], sequence)
      first = _put_open(first, state.sequence, layout.offset)
      sequence = jax.tree.map(
          lambda f, s: jnp.concatenate([f, s[:, length:]], 1), first, sequence
      )
    starts = layout.resets(length)
    segments = _Segment(
        number=jnp.arange(count),
        x=fold(x),
        recall_queries=fold(recall_queries),
        queries=fold(queries),
        rotated=fold(self.attention.rotate(queries, places)),
        sequence=jax.tree.map(fold, sequence),
        mask=None if layout.mask is None else fold(layout.mask),
        starts=None if starts is None else starts.T,
    )
    body = functools.partial(
        _run_segment,
        state=state,
        layout=layout,
        update_memory=update_memory,
    )
    # The backward pass keeps the carry once per segment.
    run = nn.scan(
        nn.remat(body, prevent_cse=False),
        variable_broadcast="params",
        split_rngs={"params": False},
        # Parameters that are there need no second trace of the segment.
        check_constancy_invariants=self.is_initializing(),
    )
    carry = _Carry(
        memory=state.memory.memory.chunk_start,
        segment_start=state.segment_start,
        query=state.memory.query,
        write=state.memory.write,
    )
    carry, (outputs, loss, tokens, recalled) = run(self, carry, segments)
    loss, tokens, recalled = jax.tree.map(join, (loss, tokens, recalled))
    memory = state_lib.with_open(
        self.memory.options,
        self.memory.net_params,
        carry.memory,
        state.memory.memory.initial,
        tokens,
        layout,
        self.config.chunk_size,
    )
    take = functools.partial(_take_open, layout=layout, length=length)
    state = MACState(
        memory=neural_memory_lib.NeuralMemoryState(
            memory, carry.query, carry.write
        ),
        recall=recall,
        segment_start=carry.segment_start,
        recalled=jax.tree.map(take, recalled),
        sequence=jax.tree.map(take, sequence),
        prefix=state.prefix,
    )
    gauges = self.memory.gauges(tokens, loss, carry.memory, layout.mask)
    return join(outputs), state, gauges

  def rotated_keys_values(self, x: Array, places: Array) -> KeysValues:
    """Returns attention's keys and values of x [B, A, d] at places [B, A]."""
    keys, values = self.attention.keys_values(x)
    return KeysValues(self.attention.rotate(keys, places), values)

  def _step(
      self,
      x: Array,
      state: MACState,
      token: layout_lib.Token,
      update_memory: bool,
  ) -> tuple[Array, MACState, neural_memory_lib.Gauges]:
    """One token a row, [B, 1, d]."""
    length = self.config.segment_length
    place = token.position % length
    initial = state.memory.memory.initial.weights
    segment_start = state.segment_start
    if token.starts is not None:
      segment_start = _change_where(token.starts, initial, segment_start)
    recall_queries, recall = self.memory.queries(x, state.recall, token)
    h = self.memory.recall(segment_start, recall_queries, x)

    caches = attention_lib.clear_rows(
        token.starts, (state.recalled, state.sequence)
    )
    recalled, sequence = (
        layout_lib.put_token(
            cache,
            self.rotated_keys_values(new, place[:, None]),
            place,
            token.mask,
        )
        for cache, new in zip(caches, (h, x))
    )
    queries = self.attention.queries(x)
    seen = jnp.arange(length) <= place[:, None]
    y = attention_lib.attend(
        queries,
        self.attention.rotate(queries, place[:, None]),
        state.prefix,
        [recalled, sequence],
        seen[:, None],
    )
    y = self.attention.output(y)
    m, memory, gauges = self.memory.apply_aligned(
        y, state.memory, token, update_memory
    )
    complete = place + 1 == length
    if token.mask is not None:
      complete &= token.mask
    segment_start = _change_where(
        complete, memory.memory.chunk_start.weights, segment_start
    )
    state = MACState(
        memory, recall, segment_start, recalled, sequence, state.prefix
    )
    return self.gate(y, m), state, gauges


def _run_segment(
    mixer: MemoryAsContext,
    carry: _Carry,
    segment: _Segment,
    *,
    state: MACState,
    layout: Layout,
    update_memory: bool,
) -> tuple[_Carry, Any]:
  """Recall, attend, write, read and gate, for one segment of every row."""
  config = mixer.config
  length = config.segment_length
  memory = mixer.memory
  initial = state.memory.memory.initial
  if segment.starts is not None:
    carry = _restarted(segment.starts, initial, carry)
  part, open_count = _segment_layout(segment, state, layout, length)
  # In fresh rows a segment starts where the carry stands.
  weights = carry.memory.weights
  if layout.offset is not None:
    weights = carry.segment_start
  h = memory.recall(weights, segment.recall_queries, segment.x)
  places = jnp.arange(length)[None]
  recalled = mixer.rotated_keys_values(h, places)
  if part.offset is not None:
    recalled = _put_open(recalled, state.recalled, part.offset)
  y = attention_lib.attend_causally(
      segment.queries,
      segment.rotated,
      state.prefix,
      [recalled, segment.sequence],
      window=length,
  )
  y = mixer.attention.output(y)
  queries, query = memory.queries(y, carry.query, part)
  tokens, write = memory.writes(y, carry.write, part, update_memory)
  _, tokens = state_lib.conform(state.memory.memory, tokens)
  tokens = scanning.with_written(tokens._replace(queries=queries), part)
  if part.offset is not None:
    opened = dataclasses.replace(state.memory.memory, count=open_count)
    first = part.offset // config.chunk_size * config.chunk_size
    tokens = state_lib.put_open(opened, tokens, first)
  outputs, loss, new = scanning.scan_chunks(
      memory.options,
      carry.memory,
      initial,
      tokens,
      memory.net_params,
      chunk_size=config.chunk_size,
      closes=part.closed(config.chunk_size),
      resets=None,
      # The whole segment is recomputed already.
      checkpoint_every=config.checkpoint_every,
      recompute=config.checkpoint_every is not None,
  )
  m = memory.output(outputs, y)
  segment_start = new.weights
  if part.end is not None:
    complete = part.end == length
    segment_start = layout_lib.select_rows(
        complete, new.weights, carry.segment_start
    )
  carry = _Carry(new, segment_start, query, write)
  tokens = tokens._replace(queries=None)
  return carry, (mixer.gate(y, m), loss, tokens, recalled)


def _restarted(
    starts: Array, initial: chunk_lib.Carry, carry: _Carry
) -> _Carry:
  """Starts a document in the rows where `starts` [B] is True."""
  select = functools.partial(layout_lib.select_rows, starts)
  convolutions = jax.tree.map(
      lambda conv: conv._replace(tail=select(conv.initial, conv.tail)),
      (carry.query, carry.write),
      is_leaf=lambda x: isinstance(x, ConvolutionState),
  )
  return _Carry(
      select(initial, carry.memory),
      select(initial.weights, carry.segment_start),
      *convolutions,
  )


def _segment_layout(
    segment: _Segment, state: MACState, layout: Layout, length: int
) -> tuple[Layout, Array]:
  """Returns one segment's layout, and the tokens of its rows' open chunks."""
  offset, end, count = None, None, state.memory.memory.count
  if layout.offset is not None:
    offset = jnp.where(segment.number == 0, layout.offset, 0)
    count = jnp.where(segment.number == 0, count, 0)
  if layout.end is not None:
    least = 0 if offset is None else offset
    end = jnp.clip(layout.end - segment.number * length, least, length)
  part = Layout(
      mask=segment.mask,
      starts=None,
      offset=offset,
      position=None,
      end=end,
      source=None,
      place=None,
      length=length,
      size=length,
  )
  return part, count


def _put_open(new: KeysValues, kept: KeysValues, offset: Array) -> KeysValues:
  """Takes the first offset[b] of C places from the open segment's caches."""
  old = jnp.arange(new.keys.shape[1]) < offset[:, None]
  return jax.tree.map(
      lambda n, k: jnp.where(old[..., None, None], k, n), new, kept
  )


def _take_open(x: Array, layout: Layout, length: int) -> Array:
  """Returns the open segment's places of [B, A, ...], zeros where free."""
  batch = x.shape[0]
  if layout.end is None:
    return jnp.zeros((batch, length, *x.shape[2:]), x.dtype)
  last = layout.size // length - 1
  first = jnp.minimum(layout.end // length, last) * length
  filled = jnp.arange(length) < (layout.end % length)[:, None]
  rows = layout_lib.rows_at(x, first, length)
  filled = filled.reshape(*filled.shape, *(1,) * (x.ndim - 2))
  return jnp.where(filled, rows, jnp.zeros_like(rows))


def _change_where(rows: Array, new, old):
  """`select_rows`, without a write where no row asks for it."""
  return conditional.change_if(
      lambda old, rows, new: layout_lib.select_rows(rows, new, old),
      jnp.any(rows),
      old,
      rows,
      new,
  )
