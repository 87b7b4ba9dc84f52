# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One token at a time: decoding, and reads without update."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import conditional
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import networks
from titans_jax.memory import products
from titans_jax.memory import state as state_lib

Array = jax.Array
MemoryState = state_lib.MemoryState


def step(
    options: chunk_lib.Rule,
    state: MemoryState,
    tokens: chunk_lib.Chunk,
    params: networks.Params,
    token: layout_lib.Token,
) -> tuple[Array, Array, MemoryState]:
  """Learns and reads one token: `scan_aligned` for T = 1.

  Reads W and S a constant number of times, and writes them only when some
  row's chunk closes.

  Args:
    options: the rule.
    state: of the memory.
    tokens: leaves [B, 1, H, ...].
    params: slow parameters, leaves [H, ...].
    token: which rows have one.

  Returns:
    Outputs [B, 1, H, D], inner losses [B, 1, H], and the new state.
  """
  mask = token.mask
  if token.starts is not None:
    state = conditional.change_if(
        state_lib.start_documents, jnp.any(token.starts), state, token.starts
    )

  def put(new, old, axis=1):
    """Puts a token, of size 1 along the axis, at place count[b] of row b."""
    return layout_lib.put_token(old, new, state.count, mask, axis)

  written = put(state_lib.written(tokens), state.open.written)
  new = jax.tree.map(
      lambda x: jnp.moveaxis(x, 1, 2), tokens._replace(written=None)
  )
  if options.gates_per_chunk:
    new = _hold_open(new, state)

  def linearize(weights, keys, values, params):
    product = chunk_lib.product_with(weights, options.dtype)
    return chunk_lib.linearize(options, params, product, keys, values)

  inputs, deltas, loss = _per_head(linearize)(
      state.chunk_start.weights, new.keys, new.values, params
  )

  kept = state.open._replace(written=None)
  added = state_lib.OpenChunk(
      keys=new.keys,
      values=new.values,
      forget=new.forget,
      learning_rate=new.learning_rate,
      momentum=new.momentum,
      written=None,
      inputs=inputs,
      deltas=deltas,
  )
  opened = jax.tree.map(functools.partial(put, axis=2), added, kept)

  # Where the chunk ends it is read when it has ended, which is the same: so all
  # reads of W and S come before they are changed, or behind it.
  count = state.count + (1 if mask is None else mask.astype(jnp.int32))
  state = dataclasses.replace(
      state, open=opened._replace(written=written), count=count
  )
  close = functools.partial(state_lib.close_rows, dtype=options.dtype)
  state = _change_rows(close, state, count == state.chunk_size)

  def read_head(carry, opened, written, queries, params):
    coefficients, _ = state_lib.end_coefficients(opened, written)
    coefficients = jax.tree.map(lambda c: c[None], coefficients)
    return chunk_lib.read(
        options,
        params,
        carry,
        coefficients,
        opened.inputs,
        opened.deltas,
        queries,
    )

  opened = state.open._replace(written=None)
  written = jnp.broadcast_to(
      state.open.written[:, None],
      (state.batch_size, state.num_heads, state.chunk_size),
  )
  outputs = _per_head(read_head)(
      state.chunk_start, opened, written, new.queries, params
  )
  return jnp.moveaxis(outputs, 2, 1), jnp.moveaxis(loss[..., 0], 2, 1), state


def _change_rows(change, state: MemoryState, rows: Array) -> MemoryState:
  """Returns change(state, rows) if any of the rows [B] is True.

  `change` opens an empty chunk and leaves the places of the old one alone:
  what does not change is not carried through the condition, which copies.
  """

  def parts(state):
    return state.chunk_start, state.open.written, state.count

  def with_parts(state, chunk_start, written, count):
    opened = state.open._replace(written=written)
    return MemoryState(chunk_start, state.initial, opened, count)

  changed = conditional.change_if(
      lambda old, state, rows: parts(change(with_parts(state, *old), rows)),
      jnp.any(rows),
      parts(state),
      state,
      rows,
  )
  return with_parts(state, *changed)


def read_weights(
    options: chunk_lib.Rule, weights: chunk_lib.Weights, queries: Array, params
) -> Array:
  """Reads [B, T, H, D] from weights [B, H, d_in, d_out]."""
  queries = queries.astype(products.at_least_float32(queries.dtype))

  def read_head(weights, queries, params):
    def dense(layer, x):
      return products.matmul(x, weights[layer], options.dtype)

    return options.net.apply(dense, queries, params)

  per_head = jax.vmap(read_head, in_axes=(0, 1, 0), out_axes=1)
  return jax.vmap(per_head, in_axes=(0, 0, None))(weights, queries, params)


def _hold_open(new: chunk_lib.Chunk, state: MemoryState) -> chunk_lib.Chunk:
  """Takes the gates of the open chunk's first token, where there is one."""
  begun = (state.count > 0)[:, None, None, None]

  def hold(new, kept):
    return jnp.where(begun, kept[:, :, :1].astype(new.dtype), new)

  kept = state.open
  return new._replace(
      forget=jax.tree.map(hold, new.forget, kept.forget),
      learning_rate=hold(new.learning_rate, kept.learning_rate),
      momentum=None
      if new.momentum is None
      else hold(new.momentum, kept.momentum),
  )


def _per_head(fn):
  """Maps fn over [B, H]; its last argument, the parameters, over [H] alone."""

  def mapped(*args):
    axes = (0,) * (len(args) - 1)
    per_head = jax.vmap(fn, in_axes=(*axes, 0))
    return jax.vmap(per_head, in_axes=(*axes, None))(*args)

  return mapped
