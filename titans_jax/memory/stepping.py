# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One token at a time: decoding, and reads without update."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from titans_jax.memory import chunk as chunk_lib
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
    state = jax.lax.cond(
        jnp.any(token.starts),
        state_lib.start_documents,
        lambda state, _: state,
        state,
        token.starts,
    )
  place = jnp.arange(state.chunk_size) == state.count[:, None]
  if mask is not None:
    place = place & mask[:, None]
  written = jnp.where(place, tokens.written, state.open.written)
  new = jax.tree.map(
      lambda x: jnp.moveaxis(x, 1, 2), tokens._replace(written=None)
  )
  if options.gates_per_chunk:
    new = _hold_open(new, state)

  def linearize(weights, keys, values, params):
    return chunk_lib.linearize(options, params, weights, keys, values)

  inputs, deltas, loss = _per_head(linearize)(
      state.chunk_start.weights, new.keys, new.values, params
  )

  def put(new, old):  # [B, H, 1, ...] into [B, H, b, ...]
    return jnp.where(place[:, None, :, None], new.astype(old.dtype), old)

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
  opened = jax.tree.map(put, added, kept)

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

  every_head = jnp.broadcast_to(
      written[:, None], (written.shape[0], state.num_heads, state.chunk_size)
  )
  outputs = _per_head(read_head)(
      state.chunk_start, opened, every_head, new.queries, params
  )
  outputs, loss = jnp.moveaxis(outputs, 2, 1), jnp.moveaxis(loss, 2, 1)
  if mask is not None:
    outputs = jnp.where(mask[:, None, None, None], outputs, 0)
  count = state.count + (1 if mask is None else mask.astype(jnp.int32))
  state = dataclasses.replace(
      state, open=opened._replace(written=written), count=count
  )
  full = count == state.chunk_size
  state = jax.lax.cond(
      jnp.any(full),
      state_lib.close_rows,
      lambda state, _: state,
      state,
      full,
  )
  return outputs, loss, state


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
