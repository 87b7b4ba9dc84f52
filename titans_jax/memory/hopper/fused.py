# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The scan over chunks by both kernels, with its derivative."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable, NamedTuple

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
_SPAN_BYTES = 2**32


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
    options: the rule. Its implementation "pallas" has a backward pass by kernel;
      "auto" one by `by_lax`, until the kernel has run on a GPU.
    by_lax: (carry, chunks, constants) -> (carry, ys), the same scan by XLA.
    carry: W and S, leaves [B, H, D, hidden], turned.
    chunks: leaves [B, H, N, ...], with coefficients.
    constants: the network's slow parameters, and what documents start from.
    group: chunks between states that are kept for the backward pass. None: one,
      or near sqrt(N) where states are many.
    interpret: `plgpu.InterpretGPUParams`; None: compiled.

  Returns:
    The carry at the end, and outputs [B, H, N, b, D] and losses [B, H, N, 1, b].
  """
  steps = chunks.keys.shape[2]
  call = _Call(options, by_lax, *_cut(carry, chunks, group), interpret)
  chunks = _close(_pad(chunks, -steps % call.span))
  starts = chunks.resets
  if starts is not None:
    starts = starts.reshape(chunks.keys.shape[:3])
    constants = constants._replace(
        initial=jax.tree.map(
            lambda x, y: jnp.broadcast_to(x, y.shape), constants.initial, carry
        )
    )
  chunks = chunks._replace(resets=None)
  carry, ys = _scan(call, carry, chunks, constants, starts)
  return carry, jax.tree.map(lambda y: y[:, :, :steps], ys)


@dataclasses.dataclass(frozen=True)
class _Call:
  """What is static about a call of `scan`.

  Attributes:
    options: as there.
    by_lax: as there.
    kept: chunks between states that are kept.
    span: chunks that the backward pass takes at once, a divisor of N.
    interpret: as there.
  """

  options: chunk_lib.Rule
  by_lax: Scan
  kept: int
  span: int
  interpret: Any

  def shape(self, carry, chunks, keep_every: int | None = None) -> shapes.Shape:
    dtype = jnp.dtype(self.options.dtype or jnp.float32)
    return _shape(carry, chunks, dtype, keep_every)


def _shape(carry, chunks, dtype, keep_every: int | None = None) -> shapes.Shape:
  batch, heads, steps, size, width = chunks.keys.shape
  return shapes.Shape(
      instances=batch * heads,
      chunks=steps,
      chunk=size,
      width=width,
      hidden=carry.weights[0].shape[-1],
      dtype=dtype,
      keep_every=keep_every,
  )


def _cut(carry, chunks, group: int | None) -> tuple[int, int]:
  """Returns the chunks between states that are kept, and those of a span."""
  shape = _shape(carry, chunks, jnp.dtype(jnp.bfloat16))
  size = sum(x.size * shape.dtype.itemsize for x in jax.tree.leaves(carry))
  kept = kept_lib.choose_group(shape.chunks, group, size)
  return kept, choose_span(shape, kept)


def choose_span(shape: shapes.Shape, kept: int) -> int:
  """Returns the chunks that the backward pass takes at once.

  As many as memory allows, in spans as even as may be.

  Args:
    shape: sizes.
    kept: chunks between states that are kept, of which it is a multiple.
  """
  # As float32: about sixteen arrays of hidden units by tokens, ten of a layer.
  numbers = shape.hidden * (16 * shape.chunk + 10 * 2 * shape.width)
  most = _SPAN_BYTES // (4 * shape.instances * numbers)
  spans = -(-shape.chunks // max(most // kept * kept, kept))
  return -(-shape.chunks // (spans * kept)) * kept


def budget(options, carry, chunks, *, group=None) -> dict[str, int | None]:
  """Returns what a block of threads takes, and how often states are kept."""
  shape = _shape(carry, chunks, jnp.dtype(options.dtype))
  return {
      "threads": 128 * shape.warpgroups,
      "shared_bytes": max(
          forward.shared_bytes(shape), backward.shared_bytes(shape)
      ),
      "keep_every": _cut(carry, chunks, group)[0],
  }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(call, carry, chunks, constants, starts):
  return _forward(call, None, carry, chunks, constants, starts)[:2]


def _forward(call, keep_every, carry, chunks, constants, starts):
  shape = call.shape(carry, chunks, keep_every)
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
  initial = state if starts is None else shapes.pack(shape, constants.initial)
  prepared = forward.prepare(shape, chunks, constants.params, starts)
  return forward.run(shape, state, initial, prepared, call.interpret)


def _scan_fwd(call, carry, chunks, constants, starts):
  carry, ys, (kept,) = _forward(
      call, call.kept, carry, chunks, constants, starts
  )
  like = jax.tree.map(lambda x: jnp.zeros((), x.dtype), carry)
  return (carry, ys), (kept, like, chunks, constants, starts)


def _scan_bwd(call, saved, cotangents):
  """Goes through spans of chunks in reverse."""
  kept, like, chunks, constants, starts = saved
  d_last, d_ys = cotangents
  batch, heads, steps = chunks.keys.shape[:3]
  by_kernel = call.options.implementation == "pallas"
  if by_kernel:
    length, through = call.span, _through_kernel
    d_last = shapes.pack(call.shape(d_last, chunks), d_last)
  else:
    length, through = call.kept, _through_lax

  def step(later, i):
    d_after, d_constants = later

    def part(x, axis, length):
      return jax.lax.dynamic_slice_in_dim(x, i * length, length, axis)

    span = _Span(
        jax.tree.map(lambda x: part(x, 1, length // call.kept), kept),
        *jax.tree.map(lambda x: part(x, 2, length), (chunks, d_ys, starts)),
    )
    d_before, d_chunks, own = through(call, span, constants, like, d_after)
    return (d_before, jax.tree.map(jnp.add, d_constants, own)), d_chunks

  zeros = jax.tree.map(jnp.zeros_like, constants)
  (d_first, d_constants), d_chunks = jax.lax.scan(
      step, (d_last, zeros), jnp.arange(steps // length), reverse=True
  )
  if by_kernel:
    d_first = shapes.unpack(d_first, (batch, heads), like)

  def joined(x):  # [spans, B, H, n, ...] -> [B, H, N, ...]
    return jnp.moveaxis(x, 0, 2).reshape(batch, heads, steps, *x.shape[4:])

  return d_first, jax.tree.map(joined, d_chunks), d_constants, None


class _Span(NamedTuple):
  """A few chunks, for the backward pass.

  Attributes:
    kept: states, leaves [I, n / kept, ...].
    chunks: leaves [B, H, n, ...].
    d_ys: cotangents of their outputs and losses.
    starts: bool [B, H, n], or None.
  """

  kept: shapes.State
  chunks: chunk_lib.Prepared
  d_ys: Any
  starts: Array | None


def _through_lax(call, span, constants, like, d_after):
  """Returns the cotangents of the first state, the chunks and the constants, all
  recomputed by XLA from the one state that was kept."""
  chunks = span.chunks
  first = jax.tree.map(lambda x: x[:, 0], span.kept)
  carry = shapes.unpack(first, chunks.keys.shape[:2], like)

  def run(carry, chunks, constants):
    return call.by_lax(carry, _with_resets(chunks, span.starts), constants)

  _, vjp = jax.vjp(run, carry, chunks, constants)
  return vjp((d_after, span.d_ys))


def _through_kernel(call, span, constants, like, d_after):
  """Returns what `_through_lax` does, states as the kernels have them.

  What waits for the chunks behind, the state's cotangent, is the kernel's; XLA
  makes the rest of the chunks at once, each by itself.
  """
  chunks, lead = span.chunks, span.chunks.keys.shape[:3]
  states = _states(call, span, constants, like)
  carry = shapes.unpack(states, lead, like)
  each = functools.partial(_each, call, span.starts)
  _, vjp_reads = jax.vjp(lambda carry: each(carry, chunks, constants)[1], carry)
  (direct,) = vjp_reads(span.d_ys)
  shape = call.shape(carry, chunks)
  linear = backward.linearize(
      shape, states, chunks, constants.params, direct, span.starts
  )
  d_before, d_states = backward.run(shape, d_after, linear, call.interpret)
  d_carry = shapes.unpack(d_states, lead, like)
  _, vjp = jax.vjp(functools.partial(each, carry), chunks, constants)
  return shapes.narrow(shape.width, d_before), *vjp((d_carry, span.d_ys))


def _with_resets(chunks, starts):
  if starts is None:
    return chunks
  return chunks._replace(resets=starts[..., None, None])


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

  carry, ys = call.by_lax(
      jax.tree.map(as_heads, carry),
      jax.tree.map(
          lambda x: as_heads(x)[:, :, None], _with_resets(chunks, starts)
      ),
      jax.tree.map(lambda x: jnp.repeat(x, size, axis=1), constants),
  )

  def as_chunks(x):
    return x.reshape(batch, heads, size, *x.shape[2:])

  ys = jax.tree.map(lambda y: as_chunks(y[:, :, 0]), ys)
  return jax.tree.map(as_chunks, carry), ys


def _states(call, span, constants, like) -> shapes.State:
  """Returns the states before all chunks of a span, leaves [I, n, ...]."""
  chunks, starts = span.chunks, span.starts
  batch, heads, steps = chunks.keys.shape[:3]
  if call.kept == 1:
    return span.kept
  groups = steps // call.kept

  # Every state that was kept is that of a head which reads the chunks behind it.
  def as_heads(x):
    return x.reshape(batch, heads * groups, call.kept, *x.shape[3:])

  first = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), span.kept)
  chunks = jax.tree.map(as_heads, chunks)
  carry = shapes.unpack(first, (batch, heads * groups), like)
  *_, states = _run(
      call,
      call.shape(carry, chunks, keep_every=1),
      first,
      chunks,
      jax.tree.map(lambda x: jnp.repeat(x, groups, axis=1), constants),
      None if starts is None else as_heads(starts),
  )
  return jax.tree.map(lambda x: x.reshape(-1, steps, *x.shape[2:]), states)


_scan.defvjp(_scan_fwd, _scan_bwd)


def _pad(chunks: chunk_lib.Prepared, extra: int) -> chunk_lib.Prepared:
  """Adds chunks without tokens, which do not close, behind the last."""
  if not extra:
    return chunks
  if chunks.closes is None:
    flags = (*chunks.keys.shape[:3], 1, 1)
    chunks = chunks._replace(closes=jnp.ones(flags, bool))

  def pad(x):
    widths = [(0, 0)] * x.ndim
    widths[2] = (0, extra)
    return jnp.pad(x, widths)

  return jax.tree.map(pad, chunks)


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
