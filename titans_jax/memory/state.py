# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory's state: the only place where test-time learning lives."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import networks
from titans_jax.memory import products
from titans_jax.memory import rule

Array = jax.Array
Weights = chunk_lib.Weights


class OpenChunk(NamedTuple):
  """The tokens of each row's open chunk.

  b rows a head, not D x D matrices: what is needed to read on, and to close.
  The places still free are not written; zeros where a document starts, later
  what earlier chunks of it left there.

  Attributes:
    keys: [B, H, b, D].
    values: [B, H, b, D].
    forget: alpha, a tuple of L arrays [B, H, b, 1] or [B, H, b, d_out].
    learning_rate: theta [B, H, b, L].
    momentum: eta [B, H, b, L], or None.
    written: bool [B, b].
    inputs: layer inputs A at the chunk's start, L arrays [B, H, b, d_in].
    deltas: gradients at the layers' outputs there, L arrays [B, H, b, d_out].
  """

  keys: Array
  values: Array
  forget: tuple[Array, ...]
  learning_rate: Array
  momentum: Array | None
  written: Array
  inputs: Weights
  deltas: Weights


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["chunk_start", "initial", "open", "count"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class MemoryState:
  """State of one neural memory. A pytree of fixed size.

  However the same tokens were cut into calls, it is the same but at the open
  chunk's free places, which nothing reads.

  Attributes:
    chunk_start: weights and momentum at the start of the open chunk, where its
      gradients are taken; tuples of L arrays [B, H, d_in, d_out].
    initial: weights and momentum that a document starts from, [1, H, d_in,
      d_out].
    open: the tokens read since the chunk's start.
    count: how many they are, int32 [B], below the chunk size.
  """

  chunk_start: chunk_lib.Carry
  initial: chunk_lib.Carry
  open: OpenChunk
  count: Array

  @property
  def weights(self) -> Weights:
    """W as of the last token seen: L arrays [B, H, d_in, d_out]."""
    return self.current().weights

  @property
  def momentum(self) -> Weights:
    """S as of the last token seen, like `weights`; zeros without momentum."""
    momentum = self.current().momentum
    if momentum is None:
      return jax.tree.map(jnp.zeros_like, self.chunk_start.weights)
    return momentum

  @property
  def chunk_size(self) -> int:
    return self.open.written.shape[1]

  @property
  def batch_size(self) -> int:
    return self.count.shape[0]

  @property
  def num_heads(self) -> int:
    return self.open.keys.shape[1]

  def broadcast(self, batch_size: int) -> MemoryState:
    """Returns a state of one row as one of `batch_size` rows."""
    rows = (self.chunk_start, self.open, self.count)
    chunk_start, opened, count = broadcast_rows(rows, batch_size)
    return MemoryState(chunk_start, self.initial, opened, count)

  def current(self, dtype: Any = None) -> chunk_lib.Carry:
    """Returns W and S as of the last token seen.

    Args:
      dtype: dtype of the products' operands; None: the state's.
    """
    options = chunk_lib.Rule(net=None, dtype=dtype)

    def close_head(carry, tokens, written):
      coefficients, last = end_coefficients(tokens, written)
      return chunk_lib.apply_update(
          options, carry, coefficients, last, tokens.inputs, tokens.deltas
      )

    tokens = self.open._replace(written=None)
    per_head = jax.vmap(close_head, in_axes=(0, 0, None))
    return jax.vmap(per_head)(self.chunk_start, tokens, self.open.written)


def end_coefficients(tokens: OpenChunk, written: Array):
  """Returns the last token's coefficients, per layer, of one head's chunk."""
  pairs = [
      rule.last_coefficients(
          rule.ChunkGates(
              forget=forget,
              learning_rate=tokens.learning_rate[:, layer],
              momentum=None
              if tokens.momentum is None
              else tokens.momentum[:, layer],
          ),
          written,
      )
      for layer, forget in enumerate(tokens.forget)
  ]
  return tuple(c for c, _ in pairs), tuple(last for _, last in pairs)


def init_state(
    net: networks.Network,
    weights: Weights,
    *,
    batch_size: int,
    chunk_size: int,
    momentum: bool = True,
    forget_per_channel: bool = False,
) -> MemoryState:
  """Returns the state of a memory that has seen nothing: W = W_0, S = 0.

  Args:
    net: the memory network.
    weights: W_0, L arrays [H, d_in, d_out], as `net.init` makes them.
    batch_size: B.
    chunk_size: b, the tokens whose gradients are taken at the same weights. A
      part of the function: a model is served with the size it was trained with.
    momentum: False leaves S out of the state, for the rule without momentum.
    forget_per_channel: makes room for gates per output channel. (`scan` gives a
      state the form its gates ask for; these two fix it from the start, as a
      carry of `jax.lax.scan` must be.)

  Raises:
    ValueError: sizes below 1, or weights that are not the network's.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
  if chunk_size < 1:
    raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
  weights = tuple(weights)
  num_heads, head_dim = check_weights(net, weights)
  dtype = products.at_least_float32(weights[0].dtype)
  weights = tuple(w.astype(dtype)[None] for w in weights)
  initial = chunk_lib.Carry(
      weights, jax.tree.map(jnp.zeros_like, weights) if momentum else None
  )
  shape = (batch_size, num_heads, chunk_size)
  zeros = functools.partial(jnp.zeros, dtype=dtype)
  layers = net.layer_shapes(head_dim)
  return MemoryState(
      chunk_start=broadcast_rows(initial, batch_size),
      initial=initial,
      open=OpenChunk(
          keys=zeros((*shape, head_dim)),
          values=zeros((*shape, head_dim)),
          forget=tuple(
              zeros((*shape, d_out if forget_per_channel else 1))
              for _, d_out in layers
          ),
          learning_rate=zeros((*shape, len(layers))),
          momentum=zeros((*shape, len(layers))) if momentum else None,
          written=jnp.zeros((batch_size, chunk_size), bool),
          inputs=tuple(zeros((*shape, d_in)) for d_in, _ in layers),
          deltas=tuple(zeros((*shape, d_out)) for _, d_out in layers),
      ),
      count=jnp.zeros(batch_size, jnp.int32),
  )


def check_weights(net: networks.Network, weights: Weights) -> tuple[int, int]:
  """Returns (H, D) of the network's weights, or raises ValueError."""
  shapes = [w.shape for w in weights]
  if not shapes or any(len(shape) != 3 for shape in shapes):
    raise ValueError(
        "weights must be a tuple of arrays [H, d_in, d_out], one per layer, got"
        f" shapes {shapes}."
    )
  num_heads, head_dim, _ = shapes[0]
  expected = [(num_heads, *layer) for layer in net.layer_shapes(head_dim)]
  if shapes != expected:
    raise ValueError(
        f"weights of shapes {shapes} are not those of {net}: {expected}."
    )
  return num_heads, head_dim


def broadcast_rows(tree, batch_size: int):
  """Returns leaves [1, ...] as [B, ...]."""
  return jax.tree.map(
      lambda x: jnp.broadcast_to(x, (batch_size, *x.shape[1:])), tree
  )


def conform(
    state: MemoryState, tokens: chunk_lib.Chunk
) -> tuple[MemoryState, chunk_lib.Chunk]:
  """Gives a state and new tokens one form.

  Without momentum S is left out of the state. Where either has a gate alpha per
  channel, the other's is repeated over the channels, which means the same.

  Raises:
    ValueError: the tokens have momentum and the state has none, or the state's
      open chunk was begun with momentum and the tokens have none; tokens of a
      wider dtype than the state's.
  """
  dtype = state.open.keys.dtype
  if jnp.promote_types(tokens.keys.dtype, dtype) != dtype:
    raise ValueError(
        f"Tokens of dtype {tokens.keys.dtype} do not fit a state of {dtype}:"
        f" make the state of {tokens.keys.dtype} weights."
    )
  kept = tokens.written
  tokens = jax.tree.map(
      lambda x: x.astype(dtype), tokens._replace(written=None)
  )._replace(written=kept)
  has_momentum = state.chunk_start.momentum is not None
  if tokens.momentum is not None and not has_momentum:
    raise ValueError(
        "Gates with momentum were given, but the state was made without:"
        " call init_state(..., momentum=True)."
    )
  if tokens.momentum is None and has_momentum:
    if layout_lib.concrete(state.count) and np.any(state.count):
      raise ValueError(
          "Gates without momentum were given, but the state's open chunk was"
          " begun with momentum: close it first (close_chunk)."
      )
    state = dataclasses.replace(
        state,
        chunk_start=state.chunk_start._replace(momentum=None),
        initial=state.initial._replace(momentum=None),
        open=state.open._replace(momentum=None),
    )

  def widen(gates, others):
    return tuple(
        jnp.broadcast_to(
            gate, (*gate.shape[:-1], max(gate.shape[-1], other.shape[-1]))
        )
        for gate, other in zip(gates, others)
    )

  forget = widen(state.open.forget, tokens.forget)
  tokens = tokens._replace(forget=widen(tokens.forget, forget))
  state = dataclasses.replace(state, open=state.open._replace(forget=forget))
  return state, tokens


def _begin_chunk(
    state: MemoryState, rows: Array, start: chunk_lib.Carry
) -> MemoryState:
  """Opens an empty chunk at `start` in the rows [B] that are True."""
  written, count = state.open.written, state.count
  empty = (jnp.zeros_like(written), jnp.zeros_like(count))
  chunk_start, written, count = layout_lib.select_rows(
      rows, (start, *empty), (state.chunk_start, written, count)
  )
  opened = state.open._replace(written=written)
  return MemoryState(chunk_start, state.initial, opened, count)


def close_rows(
    state: MemoryState, rows: Array, dtype: Any = None
) -> MemoryState:
  """Ends the open chunk in the rows [B] that are True."""
  return _begin_chunk(state, rows, state.current(dtype))


def start_documents(state: MemoryState, rows: Array) -> MemoryState:
  """Starts again from the initial state in the rows [B] that are True.

  Nothing of the document before stays, were it infinite or not a number.
  """
  state = _begin_chunk(state, rows, state.initial)
  empty = jax.tree.map(jnp.zeros_like, state.open)
  opened = layout_lib.select_rows(rows, empty, state.open)
  return dataclasses.replace(state, open=opened)


def close_chunk(net: networks.Network, state: MemoryState) -> MemoryState:
  """Returns the state with every row's open chunk closed where it stands.

  The weights as of the last token become those where gradients are taken from
  now on. A sequence cut here is another function than the same one uncut.
  """
  check_weights(net, tuple(w[0] for w in state.chunk_start.weights))
  return close_rows(state, jnp.ones(state.batch_size, bool))


def written(tokens: chunk_lib.Chunk) -> Array:
  """Returns which of the tokens, leaves [B, T, H, ...], are written, [B, T]."""
  if tokens.written is None:
    return jnp.ones(tokens.keys.shape[:2], bool)
  return tokens.written


def put_open(
    state: MemoryState, tokens: chunk_lib.Chunk, first: Array
) -> chunk_lib.Chunk:
  """Puts the open chunk's tokens before new ones, at places first + 0, 1, ...

  Args:
    state: with the open chunk.
    tokens: aligned, leaves [B, A, H, ...].
    first: int32 [B], the place where the open chunk starts, a multiple of b.
  """
  size = state.chunk_size
  place = jnp.arange(tokens.keys.shape[1]).reshape(1, -1, size)
  old = (place // size == (first // size)[:, None, None]) & (
      place % size < state.count[:, None, None]
  )

  def put(new, kept):
    chunks = new.reshape(new.shape[0], -1, size, *new.shape[2:])
    where = old.reshape(old.shape + (1,) * (chunks.ndim - 3))
    return jnp.where(where, kept[:, None], chunks).reshape(new.shape)

  def put_per_head(new, kept):
    return put(new, jnp.moveaxis(kept, 1, 2).astype(new.dtype))

  kept = state.open
  return tokens._replace(
      keys=put_per_head(tokens.keys, kept.keys),
      values=put_per_head(tokens.values, kept.values),
      forget=jax.tree.map(put_per_head, tokens.forget, kept.forget),
      learning_rate=put_per_head(tokens.learning_rate, kept.learning_rate),
      momentum=None
      if tokens.momentum is None
      else put_per_head(tokens.momentum, kept.momentum),
      written=put(written(tokens), kept.written),
  )


def with_open(
    options: chunk_lib.Rule,
    params: networks.Params,
    carry: chunk_lib.Carry,
    initial: chunk_lib.Carry,
    tokens: chunk_lib.Chunk,
    layout: layout_lib.Layout,
    chunk_size: int,
) -> MemoryState:
  """Returns the state behind a scan: its carry, and the chunk left open.

  Args:
    options: the rule.
    params: slow parameters, leaves [H, ...].
    carry: of the scan, which left out the updates of open chunks.
    initial: the state that documents start from.
    tokens: aligned, leaves [B, A, H, ...].
    layout: their places.
    chunk_size: b.
  """
  batch = tokens.keys.shape[0]
  count = jnp.zeros(batch, jnp.int32)
  if layout.end is not None:
    count = layout.end % chunk_size
    index = jnp.minimum(layout.end // chunk_size, layout.size // chunk_size - 1)
  filled = jnp.arange(chunk_size)[None] < count[:, None]

  def take(x):
    if layout.end is None:  # Known to be empty: no gathers to differentiate.
      return jnp.zeros((batch, chunk_size, *x.shape[2:]), x.dtype)
    chunks = x.reshape(batch, -1, chunk_size, *x.shape[2:])
    rows = jax.vmap(lambda row, i: row[i])(chunks, index)
    where = filled.reshape(filled.shape + (1,) * (x.ndim - 2))
    return jnp.where(where, rows, jnp.zeros_like(rows))

  def take_per_head(x):
    return jnp.moveaxis(take(x), 2, 1)

  taken = take(written(tokens))
  tokens = jax.tree.map(
      take_per_head, tokens._replace(queries=None, written=None)
  )
  return MemoryState(
      chunk_start=carry,
      initial=initial,
      open=_linearized(options, params, carry.weights, tokens, taken, filled),
      count=count,
  )


def _linearized(options, params, weights, tokens, written, filled) -> OpenChunk:
  """Adds inputs and deltas to the open chunks' tokens, leaves [B, H, b, ...]."""
  if options.gates_per_chunk:
    hold = jax.vmap(jax.vmap(chunk_lib.hold_first))
    held = hold(tokens)
    tokens = jax.tree.map(
        lambda x: jnp.where(filled[:, None, :, None], x, 0), held
    )

  def linearize(params, weights, keys, values):
    product = chunk_lib.product_with(weights, options.dtype)
    return chunk_lib.linearize(options, params, product, keys, values)

  per_head = jax.vmap(linearize, in_axes=(0, 0, 0, 0))
  inputs, deltas, _ = jax.vmap(per_head, in_axes=(None, 0, 0, 0))(
      params, weights, tokens.keys, tokens.values
  )
  inputs, deltas = jax.tree.map(
      lambda x: jnp.where(filled[:, None, :, None], x, 0).astype(
          tokens.keys.dtype
      ),
      (inputs, deltas),
  )
  return OpenChunk(
      keys=tokens.keys,
      values=tokens.values,
      forget=tokens.forget,
      learning_rate=tokens.learning_rate,
      momentum=tokens.momentum,
      written=written,
      inputs=inputs,
      deltas=deltas,
  )
