# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The scan over chunks by both kernels, with its derivative."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp

from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import dual
from titans_jax.memory import kept as kept_lib
from titans_jax.memory.hopper import backward
from titans_jax.memory.hopper import forward
from titans_jax.memory.hopper import shapes

Array = jax.Array
Scan = Callable[..., Any]

# Its error at most, as a multiple of what bfloat16 products cost `jax.lax.scan`.
ROUNDING = 2

# Bytes that the backward pass has at once of the chunks' activations.
_BLOCK_BYTES = 2**32


def scan(
    options: chunk_lib.Rule,
    by_lax: Scan,
    carry: chunk_lib.Carry,
    chunks: chunk_lib.Prepared,
    constants: chunk_lib.Constants,
    *,
    group: int | None = None,
    interpret: Any = None,
):
  """Runs `chunk.step` over chunks; see `why_not` for what it can run.

  Args:
    options: the rule.
    by_lax: (carry, chunks, constants) -> (carry, ys), the same scan by XLA, of
      which the backward pass runs single chunks. Keeps what its own needs.
    carry: W and S, leaves [B, H, D, hidden], turned.
    chunks: leaves [B, H, N, ...], with coefficients.
    constants: the network's slow parameters, and what documents start from.
    group: chunks between states that are kept for the backward pass, made a
      divisor of N. None: one, or near sqrt(N) where states are many.
    interpret: `plgpu.InterpretGPUParams`; None: compiled.

  Returns:
    The carry at the end, and outputs [B, H, N, b, D] and losses [B, H, N, 1, b].
  """
  call = _Call(options, by_lax, group, interpret)
  starts = chunks.resets
  if constants.initial is None:
    starts = None
  if starts is not None:
    starts = starts.reshape(chunks.keys.shape[:3])
    constants = constants._replace(
        initial=jax.tree.map(
            lambda x, y: jnp.broadcast_to(x, y.shape), constants.initial, carry
        )
    )
  chunks = _close(chunks)._replace(resets=None)
  return _scan(call, carry, chunks, constants, starts)


@dataclasses.dataclass(frozen=True)
class _Call:
  """What is static about a call of `scan`."""

  options: chunk_lib.Rule
  by_lax: Scan | None
  group: int | None
  interpret: Any

  def shape(self, carry, chunks, *, keep: bool) -> shapes.Shape:
    batch, heads, steps, size, width = chunks.keys.shape
    keep_every = None
    if keep:
      sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(carry)]
      keep_every = choose_kept(steps, sum(sizes), self.group)
    return shapes.Shape(
        instances=batch * heads,
        chunks=steps,
        chunk=size,
        width=width,
        hidden=carry.weights[0].shape[-1],
        dtype=jnp.dtype(self.options.dtype or jnp.float32),
        keep_every=keep_every,
    )


def choose_kept(steps: int, size: int, group: int | None) -> int:
  """Returns the chunks between states that are kept, a divisor of N.

  Args:
    steps: N.
    size: bytes of a state.
    group: chunks that were asked for; None: as few as memory allows.
  """
  group = kept_lib.choose_group(steps, group, size)
  return max(n for n in range(1, group + 1) if steps % n == 0)


def choose_block(shape: shapes.Shape) -> int:
  """Returns the chunks that the backward pass takes at once: a divisor of N, and a
  multiple of the chunks between states that are kept."""
  # As float32: about sixteen arrays of hidden units by tokens, eight of a layer.
  numbers = shape.hidden * (16 * shape.chunk + 8 * 2 * shape.width)
  most = _BLOCK_BYTES // (4 * shape.instances * numbers)
  every = shape.keep_every or 1
  divisors = [
      n for n in range(every, shape.chunks + 1, every) if shape.chunks % n == 0
  ]
  return max([n for n in divisors if n <= most], default=divisors[0])


def budget(options, carry, chunks, *, group=None) -> dict[str, int | None]:
  """Returns what a block of the kernels takes, and how often states are kept."""
  call = _Call(options, None, group, None)
  shape = call.shape(carry, chunks, keep=True)
  return {
      "threads": 128 * shape.warpgroups,
      "shared_bytes": max(
          forward.shared_bytes(shape), backward.shared_bytes(shape)
      ),
      "keep_every": shape.keep_every,
  }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(call, carry, chunks, constants, starts):
  return _forward(call, carry, chunks, constants, starts, keep=False)[:2]


def _forward(call, carry, chunks, constants, starts, *, keep):
  shape = call.shape(carry, chunks, keep=keep)
  lead = chunks.keys.shape[:3]
  outputs, losses, last, *kept = _run(
      call, shape, shapes.pack(shape, carry), chunks, constants, starts
  )
  outputs = outputs[:, :, : shape.chunk].reshape(chunks.keys.shape)
  gain = constants.params["gain"][:, :, None, None]
  losses = losses[:, :, : shape.chunk].reshape(*lead, 1, shape.chunk)
  carry = shapes.unpack(last, lead[:2], carry)
  return carry, (chunks.queries + gain * outputs, losses), kept


def _run(call, shape, state, chunks, constants, starts):
  initial = None
  if starts is not None:
    initial = shapes.pack(shape, constants.initial)
  prepared = forward.prepare(shape, chunks, constants.params, starts)
  return forward.run(shape, state, initial, prepared, call.interpret)


def _scan_fwd(call, carry, chunks, constants, starts):
  carry, ys, kept = _forward(call, carry, chunks, constants, starts, keep=True)
  like = jax.tree.map(lambda x: jnp.zeros((), x.dtype), carry)
  return (carry, ys), (kept[0], like, chunks, constants, starts)


def _scan_bwd(call, saved, cotangents):
  """Goes through blocks of chunks in reverse.

  What waits for the chunks behind, the state's cotangent, is the kernel's; XLA
  makes the rest of a block's chunks at once, each by itself.
  """
  kept, like, chunks, constants, starts = saved
  batch, heads, steps = chunks.keys.shape[:3]
  d_last, d_ys = cotangents
  whole = dataclasses.replace(
      call.shape(d_last, chunks, keep=False),
      keep_every=steps // kept.weights[0].shape[1],
  )
  size = choose_block(whole)
  shape = dataclasses.replace(whole, chunks=size, keep_every=None)

  def in_blocks(x, axis):  # [.., N, ..] -> [blocks, .., N / blocks, ..]
    blocks = (steps // size, x.shape[axis] * size // steps)
    x = x.reshape(*x.shape[:axis], *blocks, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)

  def back(x):
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(batch, heads, steps, *x.shape[4:])

  def step(later, block):
    d_after, d_constants = later
    kept, chunks, d_ys, starts = block
    states = _states(call, whole, kept, chunks, constants, starts)
    each = functools.partial(_each, call, starts)
    carry = shapes.unpack(states, (batch, heads, size), like)
    _, vjp_reads = jax.vjp(
        lambda carry: each(carry, chunks, constants)[1], carry
    )
    linear = backward.linearize(
        shape, states, chunks, constants.params, *vjp_reads(d_ys), starts
    )
    d_before, d_states = backward.run(shape, d_after, linear, call.interpret)
    d_carry = shapes.unpack(d_states, (batch, heads, size), like)
    _, vjp = jax.vjp(functools.partial(each, carry), chunks, constants)
    d_chunks, own = vjp((d_carry, d_ys))
    d_constants = jax.tree.map(jnp.add, d_constants, own)
    return (shapes.narrow(shape, d_before), d_constants), d_chunks

  blocks = (
      jax.tree.map(lambda x: in_blocks(x, 1), kept),
      *jax.tree.map(lambda x: in_blocks(x, 2), (chunks, d_ys, starts)),
  )
  start = shapes.pack(shape, d_last), jax.tree.map(jnp.zeros_like, constants)
  (d_first, d_constants), d_chunks = jax.lax.scan(
      step, start, blocks, reverse=True
  )
  d_carry = shapes.unpack(d_first, (batch, heads), like)
  return d_carry, jax.tree.map(back, d_chunks), d_constants, None


def _each(call, starts, carry, chunks, constants):
  """Runs every chunk by itself, as one of many heads.

  Args:
    call: what is static.
    starts: bool [B, H, N], or None.
    carry: before every chunk, leaves [B, H, N, D, hidden].
    chunks: leaves [B, H, N, ...].
    constants: leaves [B, H, ...], or 1 in place of B.

  Returns:
    The carry behind every chunk, and ys, leaves [B, H, N, ...].
  """
  batch, heads, size = chunks.keys.shape[:3]

  def as_heads(x):
    return x.reshape(batch, heads * size, *x.shape[3:])

  if starts is not None:
    chunks = chunks._replace(resets=starts[..., None, None])
  carry, ys = call.by_lax(
      jax.tree.map(as_heads, carry),
      jax.tree.map(lambda x: as_heads(x)[:, :, None], chunks),
      jax.tree.map(lambda x: jnp.repeat(x, size, axis=1), constants),
  )

  def as_chunks(x):
    return x.reshape(batch, heads, size, *x.shape[2:])

  ys = jax.tree.map(lambda y: as_chunks(y[:, :, 0]), ys)
  return jax.tree.map(as_chunks, carry), ys


def _states(
    call, shape: shapes.Shape, kept: shapes.State, chunks, constants, starts
) -> shapes.State:
  """Returns the states before all chunks of a block, from those that were kept.

  Args:
    call: what is static.
    shape: sizes, with the chunks between states that are kept.
    kept: leaves [I, n, ...].
    chunks: leaves [B, H, N, ...].
    constants: leaves [B, H, ...], or 1 in place of B.
    starts: bool [B, H, N], or None.
  """
  kept = shapes.narrow(shape, kept)
  every = shape.keep_every
  if every == 1:
    return kept
  batch, heads, steps = chunks.keys.shape[:3]
  groups = steps // every
  # Every state that was kept is that of a head which reads the chunks behind it.
  again = dataclasses.replace(
      shape, instances=shape.instances * groups, chunks=every, keep_every=1
  )

  def as_heads(x):
    return x.reshape(batch, heads * groups, every, *x.shape[3:])

  *_, states = _run(
      call,
      again,
      jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept),
      jax.tree.map(as_heads, chunks),
      jax.tree.map(lambda x: jnp.repeat(x, groups, axis=1), constants),
      None if starts is None else as_heads(starts),
  )
  states = shapes.narrow(shape, states)
  return jax.tree.map(lambda x: x.reshape(-1, steps, *x.shape[2:]), states)


_scan.defvjp(_scan_fwd, _scan_bwd)


def _close(chunks: chunk_lib.Prepared) -> chunk_lib.Prepared:
  """Gives chunks that do not close the coefficients of no update."""
  if chunks.closes is None:
    return chunks

  def of_layer(c: dual.Coefficients) -> dual.Coefficients:
    def if_closed(value, otherwise):
      return jnp.where(chunks.closes, value, otherwise)

    return c._replace(
        last_weights=if_closed(c.last_weights, 1),
        last_momentum=if_closed(c.last_momentum, 0),
        last_gradients=if_closed(c.last_gradients, 0),
        momentum_kept=if_closed(c.momentum_kept, 1),
        momentum_gradients=if_closed(c.momentum_gradients, 0),
    )

  gates = [of_layer(c) for c in chunks.gates]
  return chunks._replace(gates=gates, closes=None)
