# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The scan over chunks by both kernels, with its derivative."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import dual
from titans_jax.memory import kept as kept_lib
from titans_jax.memory import networks
from titans_jax.memory.hopper import backward
from titans_jax.memory.hopper import chunkwise
from titans_jax.memory.hopper import coefficients
from titans_jax.memory.hopper import forward
from titans_jax.memory.hopper import shapes

Array = jax.Array

# Its error at most, as a multiple of what bfloat16 products cost `jax.lax.scan`.
ROUNDING = 2

# The kernels' names, and what they do.
KERNELS = {
    forward.NAME: "forward",
    forward.NAME_KEEPING: "forward, kept",
    backward.NAME: "backward",
    coefficients.NAME: "coefficients",
    coefficients.NAME_BACKWARD: "coefficients, backward",
}

# Bytes that the backward pass has at once of the chunks' activations.
_SPAN_BYTES = 6 * 2**30


def scan(
    options: chunk_lib.Rule,
    carry: chunk_lib.Carry,
    chunks: chunk_lib.Prepared,
    constants: chunk_lib.Constants,
    *,
    group: int | None = None,
    interpret: Any = None,
):
  """Runs `chunk.step` over chunks; see `why_not` for what it can run.

  Args:
    options: the rule, whose products' operands have a dtype.
    carry: W and S, leaves [B, H, D, hidden], turned.
    chunks: leaves [B, H, N, ...], with gates.
    constants: the network's slow parameters, and what documents start from.
    group: chunks between states that are kept for the backward pass. None: one,
      or near sqrt(N) where states are many.
    interpret: `plgpu.InterpretGPUParams`; None: compiled.

  Returns:
    The carry at the end, and outputs [B, H, N, b, D] and losses [B, H, N, 1, b].
  """
  steps = chunks.keys.shape[2]
  call = _Call(options, *_cut(options, carry, chunks, group), interpret)
  chunks = _pad(chunks, -steps % call.span)
  starts, initial = chunks.resets, None
  if starts is not None:
    starts = starts.reshape(chunks.keys.shape[:3])
    initial = jax.tree.map(
        lambda x, y: jnp.broadcast_to(x, y.shape), constants.initial, carry
    )
  constants = constants._replace(initial=initial)
  chunks = chunks._replace(resets=None)
  carry, ys = _scan(call, carry, chunks, constants, starts)
  return carry, jax.tree.map(lambda y: y[:, :, :steps], ys)


@dataclasses.dataclass(frozen=True)
class _Call:
  """What is static about a call of `scan`.

  Attributes:
    options: the rule.
    kept: chunks between states that are kept.
    span: chunks that the backward pass takes at once, a divisor of N.
    interpret: as there.
  """

  options: chunk_lib.Rule
  kept: int
  span: int
  interpret: Any

  def shape(self, chunks, keep_every: int | None = None) -> shapes.Shape:
    return _shape(self.options, chunks, keep_every)


def _shape(options, chunks, keep_every: int | None = None) -> shapes.Shape:
  batch, heads, steps, size, width = chunks.keys.shape
  return shapes.Shape(
      instances=batch * heads,
      chunks=steps,
      chunk=size,
      width=width,
      hidden=shapes.hidden(options, width),
      dtype=jnp.dtype(options.dtype),
      max_grad_norm=options.max_grad_norm,
      keep_every=keep_every,
  )


def _cut(options, carry, chunks, group: int | None) -> tuple[int, int]:
  """Returns the chunks between states that are kept, and those of a span."""
  shape = _shape(options, chunks)
  size = sum(x.size * shape.dtype.itemsize for x in jax.tree.leaves(carry))
  kept = kept_lib.choose_group(shape.chunks, group, size)
  return kept, choose_span(shape, kept)


def choose_span(shape: shapes.Shape, kept: int) -> int:
  """Returns the chunks that the backward pass takes at once.

  As many as memory allows, in spans as even as may be: without chunks added, if
  that does not take twice as many spans.

  Args:
    shape: sizes.
    kept: chunks between states that are kept, of which it is a multiple.
  """
  # About ten arrays of hidden units by tokens, and as many of a layer.
  numbers = 10 * shape.hidden * (shape.chunk + shape.width)
  most = _SPAN_BYTES // (shape.dtype.itemsize * shape.instances * numbers)
  groups, most = -(-shape.chunks // kept), max(most // kept, 1)
  spans = -(-groups // most)
  spans = next((n for n in range(spans, 2 * spans) if groups % n == 0), spans)
  return -(-groups // spans) * kept


def budget(options, carry, chunks, *, group=None) -> dict[str, Any]:
  """Returns what a block of threads takes and how many are a cluster, by kernel, and
  `keep_every`, chunks between states that are kept."""
  shape = _shape(options, chunks)

  def block(warpgroups, shared_bytes, cluster=1):
    return {
        "threads": 128 * warpgroups,
        "shared_bytes": shared_bytes,
        "cluster": cluster,
    }

  def of_scan(kernel):
    return block(shape.warpgroups, kernel.shared_bytes(shape), shape.blocks)

  ahead, back = of_scan(forward), of_scan(backward)
  return {
      "kernels": {
          forward.NAME: ahead,
          forward.NAME_KEEPING: ahead,
          backward.NAME: back,
          coefficients.NAME: block(1, 0),
          coefficients.NAME_BACKWARD: block(
              1, coefficients.shared_bytes(shape.chunk)
          ),
      },
      "keep_every": _cut(options, carry, chunks, group)[0],
  }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(call, carry, chunks, constants, starts):
  return _forward(call, None, carry, chunks, constants, starts)[:2]


def _coefficients(call, closes, gates) -> list[dual.Coefficients]:
  return _close(coefficients.coefficients(gates, call.interpret), closes)


def _forward(call, keep_every, carry, chunks, constants, starts):
  shape = call.shape(chunks, keep_every)
  lead = chunks.keys.shape[:3]
  gates = _coefficients(call, chunks.closes, chunks.gates)
  chunks = chunks._replace(gates=gates, closes=None)
  outputs, losses, last, *kept = _run(
      call, shape, shapes.pack(shape, carry), chunks, constants, starts
  )
  outputs = networks.layer_norm(jnp.sum(outputs[..., : shape.chunk, :], axis=2))
  outputs = outputs.reshape(chunks.keys.shape)
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
  # Coefficients are made again: they are several times what they are made of.
  like = jax.tree.map(lambda x: jnp.zeros((), x.dtype), carry)
  return (carry, ys), (kept, like, chunks, constants, starts)


def _scan_bwd(call, saved, cotangents):
  """Goes through spans of chunks in reverse."""
  kept, like, chunks, constants, starts = saved
  gates, through_coefficients = jax.vjp(
      functools.partial(_coefficients, call, chunks.closes), chunks.gates
  )
  chunks = chunks._replace(gates=gates, closes=None)
  d_last, (d_outputs, _) = cotangents
  batch, heads, steps = chunks.keys.shape[:3]
  # Where a document starts behind a chunk nothing of its state goes on.
  ends = starts
  if starts is not None:
    ends = jnp.pad(starts[:, :, 1:], ((0, 0), (0, 0), (0, 1)))

  def step(later, i):
    d_after, d_constants = later

    def part(x, axis, length):
      return jax.lax.dynamic_slice_in_dim(x, i * length, length, axis)

    span = _Span(
        jax.tree.map(lambda x: part(x, 1, call.span // call.kept), kept),
        *jax.tree.map(
            lambda x: part(x, 2, call.span), (chunks, d_outputs, starts, ends)
        ),
    )
    d_before, d_chunks, own = _through(call, span, constants, d_after)
    return (d_before, jax.tree.map(jnp.add, d_constants, own)), d_chunks

  zeros = jax.tree.map(jnp.zeros_like, constants)
  d_last = shapes.pack(call.shape(chunks), d_last)
  (d_first, d_constants), d_chunks = jax.lax.scan(
      step, (d_last, zeros), jnp.arange(steps // call.span), reverse=True
  )

  def joined(x):  # [spans, B, H, n, ...] -> [B, H, N, ...]
    return jnp.moveaxis(x, 0, 2).reshape(batch, heads, steps, *x.shape[4:])

  d_first = shapes.unpack(d_first, (batch, heads), like)
  if starts is not None:
    at_once = starts[:, :, :1, None]
    d_initial = jax.tree.map(
        lambda total, x: total + jnp.where(at_once, x, 0),
        d_constants.initial,
        d_first,
    )
    d_constants = d_constants._replace(initial=d_initial)
    d_first = jax.tree.map(lambda x: jnp.where(at_once, 0, x), d_first)
  d_chunks = jax.tree.map(joined, d_chunks)
  (d_gates,) = through_coefficients(d_chunks.gates)
  return d_first, d_chunks._replace(gates=d_gates), d_constants, None


class _Span(NamedTuple):
  """A few chunks, for the backward pass.

  Attributes:
    kept: states, leaves [I, n / kept, ...].
    chunks: leaves [B, H, n, ...].
    d_outputs: cotangents of their outputs; losses are constants to derivatives.
    starts: bool [B, H, n], or None.
    ends: whether a document starts behind the chunk, likewise.
  """

  kept: shapes.State
  chunks: chunk_lib.Prepared
  d_outputs: Array
  starts: Array | None
  ends: Array | None


def _through(call, span, constants, d_after):
  """Returns the cotangents of the first state, the chunks and the constants.

  What waits for the chunks behind is the kernel's; XLA makes the rest of the
  chunks at once, each by itself.
  """
  states = _states(call, span, constants)
  shape = call.shape(span.chunks)
  own, vjp_own = jax.vjp(
      functools.partial(chunkwise.chunk, shape), span.chunks, constants.params
  )
  before = chunkwise.matrices(shape, states)
  learned = chunkwise.learn(shape, before, own)
  seen = learned.seen
  _, vjp_read = jax.vjp(
      functools.partial(chunkwise.read, shape), before, seen, own
  )
  direct, d_seen, d_own = vjp_read(shapes.flat(shape, span.d_outputs))

  def going_on(own):
    """Lets nothing of the state behind a chunk come from it where it ends."""
    if span.ends is None:
      return own
    ends = shapes.flat(shape, span.ends)[..., None, None]
    gates = jax.tree.map(lambda x: jnp.where(ends, 0, x), own.gates)
    return own._replace(gates=gates)

  linear = backward.prepare(
      shape, going_on(own), before, learned, direct, d_seen
  )
  d_before, d_states, d_z, d_delta_2, on_delta_1 = backward.run(
      shape, d_after, linear, call.interpret
  )

  def rest(own):
    return (
        chunkwise.update(shape, before, seen, going_on(own)),
        chunkwise.gradient(learned.f, own),
        chunkwise.first_layer(shape, before, own),
    )

  _, vjp_rest = jax.vjp(rest, own)
  (d_rest,) = vjp_rest((chunkwise.matrices(shape, d_states), d_delta_2, d_z))
  if learned.bounds is not None:
    d_keys = chunkwise.d_keys_of_bound(learned.bounds, own, on_delta_1)
    d_rest = d_rest._replace(keys=d_rest.keys + d_keys)
  d_chunks, d_params = vjp_own(jax.tree.map(jnp.add, d_own, d_rest))
  d_initial = None
  if span.ends is not None:
    d_initial = _of_ends(shape, span.ends, d_states, constants.initial)
  d_constants = chunk_lib.Constants(d_params, d_initial)
  return d_before, d_chunks, d_constants


def _of_ends(shape, ends, d_states, like):
  """Returns the sum of cotangents of states that another document starts from."""
  weights = shapes.flat(shape, ends)

  def total(x):
    return chunkwise.product(
        shape.dtype, "in,in...->i...", jnp.float32, weights, x
    )

  return shapes.unpack(jax.tree.map(total, d_states), ends.shape[:2], like)


def _states(call, span, constants) -> shapes.State:
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
  *_, states = _run(
      call,
      call.shape(chunks, keep_every=1),
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


def _close(
    of_layers: list[dual.Coefficients], closes: Array | None
) -> list[dual.Coefficients]:
  """Gives chunks that do not close the coefficients of no update."""
  if closes is None:
    return of_layers

  def of_layer(c: dual.Coefficients) -> dual.Coefficients:
    def if_closed(value, otherwise):
      return jnp.where(closes, value, otherwise)

    return c._replace(
        last_weights=if_closed(c.last_weights, 1),
        last_momentum=if_closed(c.last_momentum, 0),
        last_gradients=if_closed(c.last_gradients, 0),
        momentum_kept=if_closed(c.momentum_kept, 1),
        momentum_gradients=if_closed(c.momentum_gradients, 0),
    )

  return [of_layer(c) for c in of_layers]
