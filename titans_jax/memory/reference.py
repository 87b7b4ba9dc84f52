# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The learning rule, read literally: token by token, weights materialised.

The oracle that every other implementation is tested against. Between a state
and a state it shares no arithmetic with them: no dual form, no chunks, no
alignment; v1 equations 12 to 15 as they stand, with the gradient taken at the
weights of the chunk's start.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import networks
from titans_jax.memory import state as state_lib

Array = jax.Array
Weights = chunk_lib.Weights


class _Carry(NamedTuple):
  """One head's state between tokens, and the tokens since the chunk's start."""

  start: chunk_lib.Carry
  now: chunk_lib.Carry
  tokens: Any
  num_open: Array


def recurrence(
    options: chunk_lib.Rule,
    state: state_lib.MemoryState,
    tokens: chunk_lib.Chunk,
    params: networks.Params,
    mask: Array | None = None,
    resets: Array | None = None,
) -> tuple[Array, _Carry]:
  """Runs the recurrence over tokens, leaves [B, T, H, ...].

  Returns:
    Outputs [B, T, H, D] and the carry behind the last token, leaves [B, H,
    ...], whose `now` holds W and S as the recurrence left them.
  """
  batch, length, num_heads, _ = tokens.keys.shape
  mask = jnp.ones((batch, length), bool) if mask is None else mask
  resets = jnp.zeros((batch, length), bool) if resets is None else resets
  kept = state.open
  buffers = chunk_lib.Chunk(
      queries=None,
      keys=kept.keys,
      values=kept.values,
      forget=kept.forget,
      learning_rate=kept.learning_rate,
      momentum=kept.momentum,
      written=jnp.broadcast_to(
          kept.written[:, None], (batch, num_heads, state.chunk_size)
      ),
  )
  carry = _Carry(
      start=state.chunk_start,
      now=state.current(),
      tokens=buffers,
      num_open=jnp.broadcast_to(state.count[:, None], (batch, num_heads)),
  )

  def per_head(carry, initial, tokens, mask, resets, params):
    def body(carry, x):
      return _token(options, params, initial, carry, *x)

    carry, outputs = jax.lax.scan(body, carry, (tokens, mask, resets))
    return outputs, carry

  written = state_lib.written(tokens)[..., None]
  tokens = tokens._replace(
      written=jnp.broadcast_to(written, (batch, length, num_heads))
  )
  initial = state_lib.broadcast_rows(state.initial, batch)
  over_heads = jax.vmap(
      per_head, in_axes=(0, 0, 1, None, None, 0), out_axes=(1, 0)
  )
  over_rows = jax.vmap(over_heads, in_axes=(0, 0, 0, 0, 0, None))
  return over_rows(carry, initial, tokens, mask, resets, params)


def _token(options, params, initial, carry, token, real, reset):
  """One token of one head: everything that equations 12 to 15 say."""
  chunk_size = carry.tokens.keys.shape[0]
  empty = jax.tree.map(jnp.zeros_like, carry.tokens)
  begin = _Carry(initial, initial, empty, jnp.zeros_like(carry.num_open))
  carry = _where(reset & real, begin, carry)
  if options.gates_per_chunk:
    first = jax.tree.map(lambda x: x[0], carry.tokens)
    gates = ("forget", "learning_rate", "momentum")
    token = _where(
        carry.num_open > 0,
        token._replace(**{name: getattr(first, name) for name in gates}),
        token,
    )

  def loss(weights):
    error = _apply(options, params, weights, token.keys) - token.values
    return jnp.sum(error * error)

  gradients = jax.grad(loss)(carry.start.weights)
  if options.max_grad_norm is not None:
    gradients = tuple(_clip(u, options.max_grad_norm) for u in gradients)
  weights, momentum = [], []
  for layer, u in enumerate(gradients):
    surprise = -token.learning_rate[layer] * u
    if token.momentum is not None:
      surprise += token.momentum[layer] * carry.now.momentum[layer]
      momentum.append(surprise)
    kept = (1 - token.forget[layer]) * carry.now.weights[layer]
    weights.append(kept + surprise)
  now = chunk_lib.Carry(
      tuple(weights), None if token.momentum is None else tuple(momentum)
  )
  now = _where(token.written, now, carry.now)
  output = _apply(options, params, now.weights, token.queries)
  seen = jax.tree.map(
      lambda old, new: old.at[carry.num_open].set(new),
      carry.tokens,
      token._replace(queries=None),
  )
  after = _Carry(carry.start, now, seen, carry.num_open + 1)
  closed = _Carry(now, now, empty, jnp.zeros_like(carry.num_open))
  after = _where(after.num_open == chunk_size, closed, after)
  return _where(real, after, carry), jnp.where(real, output, 0)


def _apply(options, params, weights, x):
  """M_W(x) for one token x [D]."""
  y = options.net.apply(lambda layer, x: x @ weights[layer], x[None], params)
  return y[0]


def _clip(u: Array, bound: float) -> Array:
  square = jnp.sum(u * u)
  above = square > bound * bound
  return jnp.where(above, u * bound / jnp.sqrt(jnp.where(above, square, 1)), u)


def _where(condition, new, old):
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def scan(
    options: chunk_lib.Rule,
    state: state_lib.MemoryState,
    tokens: chunk_lib.Chunk,
    params: networks.Params,
    mask: Array | None = None,
    resets: Array | None = None,
) -> tuple[Array, state_lib.MemoryState]:
  """Returns the recurrence's outputs and its carry as a `MemoryState`."""
  layout_lib.check_starts(resets, state.chunk_size)
  outputs, carry = recurrence(options, state, tokens, params, mask, resets)
  count = carry.num_open[:, 0]
  filled = jnp.arange(state.chunk_size)[None] < count[:, None]
  seen = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 2), carry.tokens)
  places = layout_lib.Layout(
      mask=filled,
      starts=None,
      offset=None,
      position=None,
      end=count,
      source=None,
      place=None,
      length=state.chunk_size,
      size=state.chunk_size,
  )
  return outputs, state_lib.with_open(
      options,
      params,
      carry.start,
      state.initial,
      seen._replace(written=filled & seen.written[:, :, 0]),
      places,
      state.chunk_size,
  )
