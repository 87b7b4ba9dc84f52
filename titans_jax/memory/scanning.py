# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory's scan over whole chunks, as `jax.lax.scan` runs it."""

from __future__ import annotations

import functools
import math
from typing import Any, Callable

import jax
import jax.numpy as jnp

from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import networks
from titans_jax.memory import state as state_lib

Array = jax.Array
MemoryState = state_lib.MemoryState


def scan_aligned(
    options: chunk_lib.Rule,
    state: MemoryState,
    tokens: chunk_lib.Chunk,
    params: networks.Params,
    layout: layout_lib.Layout,
    *,
    checkpoint_every: int | None = None,
) -> tuple[Array, Array, MemoryState]:
  """Scans aligned tokens, leaves [B, A, H, ...], from a state to a state.

  Returns:
    Outputs [B, A, H, D], inner losses [B, A, H], and the new state.
  """
  size = state.chunk_size
  tokens = with_written(tokens, layout)
  if layout.offset is not None:
    first = layout.offset // size * size
    tokens = state_lib.put_open(state, tokens, first)
  outputs, loss, carry = scan_chunks(
      options,
      state.chunk_start,
      state.initial,
      tokens,
      params,
      chunk_size=size,
      closes=layout.closed(size),
      resets=layout.resets(size),
      checkpoint_every=checkpoint_every,
  )
  state = state_lib.with_open(
      options, params, carry, state.initial, tokens, layout, size
  )
  return outputs, loss, state


def with_written(
    tokens: chunk_lib.Chunk, layout: layout_lib.Layout
) -> chunk_lib.Chunk:
  """Leaves the tokens that are not real ones unwritten."""
  if layout.mask is None:
    return tokens
  return tokens._replace(written=tokens.written & layout.mask)


def scan_chunks(
    options: chunk_lib.Rule,
    carry: chunk_lib.Carry,
    initial: chunk_lib.Carry,
    tokens: chunk_lib.Chunk,
    params: networks.Params,
    *,
    chunk_size: int,
    closes: Array | None,
    resets: Array | None,
    checkpoint_every: int | None = None,
    recompute: bool = True,
) -> tuple[Array, Array, chunk_lib.Carry]:
  """Threads (W, S) through whole chunks.

  Args:
    options: the rule.
    carry: W and S at the start, leaves [B, H, ...].
    initial: those that documents start from, [1, H, ...].
    tokens: aligned, leaves [B, A, H, ...].
    params: slow parameters, leaves [H, ...].
    chunk_size: b.
    closes: bool [B, A / b] or None, as in `chunk.Chunk`.
    resets: bool [B, A / b] or None.
    checkpoint_every: chunks per group of the backward pass.
    recompute: as in `lax_scan`.

  Returns:
    Outputs [B, A, H, D], inner losses [B, A, H], and the carry at the end.
  """
  batch, size, num_heads, _ = tokens.keys.shape
  num_chunks = size // chunk_size

  def split(x):  # [B, A, H, ...] -> [B, H, N, b, ...]
    x = x.reshape(batch, num_chunks, chunk_size, *x.shape[2:])
    return jnp.moveaxis(x, 3, 1)

  def per_row(x):  # [B, N, ...] -> [B, H, N, ...]
    if x is None:
      return None
    shape = (batch, num_heads, num_chunks, *x.shape[2:])
    return jnp.broadcast_to(x[:, None], shape)

  def join(y):  # [B, H, N, b, ...] -> [B, A, H, ...]
    y = jnp.moveaxis(y, 1, 3)
    return y.reshape(batch, size, num_heads, *y.shape[4:])

  written = tokens.written.reshape(batch, num_chunks, chunk_size)
  chunks = jax.tree.map(split, tokens._replace(written=None))._replace(
      written=per_row(written), closes=per_row(closes), resets=per_row(resets)
  )
  constants = chunk_lib.Constants(
      params=jax.tree.map(lambda p: p[None], params),
      initial=None if resets is None else initial,
  )
  carry, (outputs, loss) = lax_scan(
      functools.partial(chunk_lib.step, options),
      carry,
      chunks,
      constants,
      group=checkpoint_every,
      recompute=recompute,
  )
  return join(outputs), join(loss), carry


def lax_scan(
    step_fn: Callable[..., Any],
    init,
    xs,
    consts,
    *,
    group: int | None = None,
    recompute: bool = True,
):
  """`jax.lax.scan` with leading axes [B, H], keeping the carry once per group.

  Args:
    step_fn: (carry, x, consts) -> (carry, y), of one batch row and head.
    init: leaves [B, H, ...].
    xs: leaves [B, H, N, ...].
    consts: leaves [B, H, ...], or of size 1 there.
    group: steps per group: reverse-mode differentiation keeps the carry once
      per group and recomputes inside. None: about the square root of N.
    recompute: False: keeps everything, for a caller that recomputes it all.

  Returns:
    The last carry, and ys, leaves [B, H, N, ...].
  """
  body = _over_leading_axes(step_fn, consts, depth=2)
  steps = jax.tree.leaves(xs)[0].shape[2]
  xs = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), xs)
  group = _group_size(steps, group) if recompute else steps

  def run(carry, xs):
    return jax.lax.scan(lambda c, x: body(c, x, consts), carry, xs)

  if group == steps:
    if recompute:
      run = jax.checkpoint(run)
    carry, ys = run(init, xs)
    return carry, jax.tree.map(lambda y: jnp.moveaxis(y, 0, 2), ys)
  whole = steps // group * group
  groups = jax.tree.map(
      lambda x: x[:whole].reshape(-1, group, *x.shape[1:]), xs
  )
  # Inside a scan nothing can merge the recomputation with the forward pass.
  run_group = jax.checkpoint(run, prevent_cse=False)
  carry, ys = jax.lax.scan(run_group, init, groups)
  ys = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), ys)
  if whole < steps:
    rest = jax.tree.map(lambda x: x[whole:], xs)
    carry, rest = jax.checkpoint(run)(carry, rest)
    ys = jax.tree.map(lambda *y: jnp.concatenate(y), ys, rest)
  return carry, jax.tree.map(lambda y: jnp.moveaxis(y, 0, 2), ys)


def _group_size(steps: int, group: int | None) -> int:
  """Returns the steps per group, by default a divisor near the square root."""
  if group is None:
    root = math.isqrt(steps)
    divisors = [g for g in range(root, 2 * root + 1) if steps % g == 0]
    return divisors[0] if divisors else root
  return min(group, steps)


def _over_leading_axes(fn, consts, depth: int):
  """Maps fn(carry, x, consts) over leading axes; consts may be of size 1."""
  if depth == 0:
    return fn
  axes = jax.tree.map(lambda c: None if c.shape[0] == 1 else 0, consts)
  squeezed = jax.tree.map(
      lambda c: jax.ShapeDtypeStruct(c.shape[1:], c.dtype), consts
  )
  inner = jax.vmap(
      _over_leading_axes(fn, squeezed, depth - 1), in_axes=(0, 0, axes)
  )

  def mapped(carry, x, consts):
    consts = jax.tree.map(lambda c: c[0] if c.shape[0] == 1 else c, consts)
    return inner(carry, x, consts)

  return mapped
