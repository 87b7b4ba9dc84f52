# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Chunks by themselves, each from the state before it, many at once by XLA.

`forward` keeps the state before every chunk, and with it no chunk waits for
another. What a chunk does falls into three parts, which the backward pass
differentiates apart:

    learn    activations A and gradients Delta of the keys, at the weights before;
    read     outputs of the queries, given those and the state before;
    update   the state behind, likewise.

Only the state's cotangent has to go from chunk to chunk, and with it what it makes
of A and Delta: that is the kernel's (`backward`). Laid out as there, hidden units
by tokens, so that neither operands nor states are transposed. Activations and
their cotangents are in the products' dtype, and a token's factors act on its D
numbers instead of its hidden units: the time goes into main memory's traffic.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import networks
from titans_jax.memory.hopper import shapes

Array = jax.Array


class Seen(NamedTuple):
  """A and Delta of both layers but K, which is A of the first.

  Attributes:
    acts: gelu(Z), A of the second, [I, N, hidden, b].
    delta_1: Delta_1^T, likewise.
    delta_2: Delta_2, float32 [I, N, b, D].
  """

  acts: Array
  delta_1: Array
  delta_2: Array


class Bounds(NamedTuple):
  """What `max_grad_norm` makes of gradients u = a (x) delta, of both layers.

  Attributes:
    scales: s, what delta is multiplied with, [I, N, b] each.
    over_inputs: one over |a|^2 where a gradient is bounded, else zero; likewise.
    over_deltas: one over |s delta|^2, likewise.
  """

  scales: tuple[Array, ...]
  over_inputs: tuple[Array, ...]
  over_deltas: tuple[Array, ...]


class Learned(NamedTuple):
  """What a chunk's keys and values give.

  Attributes:
    seen: what is read and learned of them, bounded.
    slopes: gelu'(Z), [I, N, hidden, b].
    bends: W_2 Delta_2^T * gelu''(Z), likewise.
    f: the second layer's outputs f(k), float32 [I, N, b, D].
    delta_2: as in `seen`, before it is bounded.
    bounds: None without a bound.
  """

  seen: Seen
  slopes: Array
  bends: Array
  f: Array
  delta_2: Array
  bounds: Bounds | None


class Matrices(NamedTuple):
  """W and S of both layers, [I, N, hidden, D]."""

  w1: Array
  w2: Array
  s1: Array
  s2: Array


def matrices(shape: shapes.Shape, states: shapes.State) -> Matrices:
  """Returns kernels' states [I, N, ...], without rests."""

  def matrix(x):
    return x.reshape(*x.shape[:2], shape.hidden, shape.width)

  return Matrices(*map(matrix, (*states.weights, *states.momentum)))


class Chunk(NamedTuple):
  """Tokens [I, N, b, D], the layers' coefficients, and the gain [I, 1, 1, D]."""

  keys: Array
  values: Array
  queries: Array
  gates: Any
  gain: Array


def chunk(shape: shapes.Shape, chunks: chunk_lib.Prepared, params) -> Chunk:
  """Returns chunks, leaves [B, H, N, ...], as they are taken here."""
  gains = shapes.gains(shape, params, chunks.keys.shape[1])
  return Chunk(
      *jax.tree.map(
          functools.partial(shapes.flat, shape),
          (chunks.keys, chunks.values, chunks.queries, chunks.gates),
      ),
      gain=gains[:, None, None],
  )


def learn(shape: shapes.Shape, before: Matrices, own: Chunk) -> Learned:
  """Returns what is learned from, at the weights before the chunk."""
  z = first_layer(shape, before, own).astype(jnp.float32)
  slopes, curvatures = jax.jvp(networks.gelu_slope, (z,), (jnp.ones_like(z),))
  acts, slopes, curvatures = shapes.round_to(
      shape.dtype, networks.ACTIVATIONS["gelu"](z), slopes, curvatures
  )
  f = over_units(shape, acts, before.w2)
  delta_2 = gradient(f, own)
  back = _units(shape.dtype, before.w2, delta_2).astype(jnp.float32)
  delta_1, bounded, bounds = slopes * back, delta_2, None
  if shape.max_grad_norm is not None:
    bounds = _bound(shape.max_grad_norm, own.keys, acts, delta_1, delta_2)
    scale_1, scale_2 = bounds.scales
    delta_1 = scale_1[..., None, :] * delta_1
    bounded = scale_2[..., None] * delta_2
  bends, delta_1 = shapes.round_to(shape.dtype, curvatures * back, delta_1)
  seen = Seen(acts, delta_1, bounded)
  return Learned(seen, slopes, bends, f, delta_2, bounds)


def _bound(most: float, keys, acts, delta_1, delta_2) -> Bounds:
  """Bounds the norms of all tokens' gradients, |a| |delta|, layer by layer."""
  square = lambda x, axis: jnp.sum(jnp.square(x.astype(jnp.float32)), axis)

  def of_layer(a, delta):
    scale = chunk_lib.scale_to_bound(a * delta, most)
    bounded = scale < 1
    over_input = jnp.where(bounded, 1 / jnp.where(bounded, a, 1), 0)
    return scale, over_input, jnp.where(bounded, a / most**2, 0)

  return Bounds(
      *zip(
          of_layer(square(keys, -1), square(delta_1, -2)),
          of_layer(square(acts, -2), square(delta_2, -1)),
      )
  )


def d_keys_of_bound(bounds: Bounds, own: Chunk, on_delta_1: Array) -> Array:
  """Returns what the first layer's bound adds to the keys' cotangents.

  With delta' = s delta and s = c / (|a| |delta|), that of a is
  -<delta', d delta'> a / |a|^2.

  Args:
    bounds: from `learn`.
    own: the chunks.
    on_delta_1: <delta', d delta'> of that layer, [I, N, b].
  """
  return -(on_delta_1 * bounds.over_inputs[0])[..., None] * own.keys


def first_layer(shape: shapes.Shape, before: Matrices, own: Chunk) -> Array:
  """Returns Z = W_1 K^T, [I, N, hidden, b]."""
  return _units(shape.dtype, before.w1, own.keys)


def gradient(f: Array, own: Chunk) -> Array:
  """Returns the loss's gradient by f(k), Delta_2."""
  return networks.layer_norm_back(f, by_norm(networks.layer_norm(f), own))


def by_norm(y: Array, own: Chunk) -> Array:
  """Returns the loss's gradient by y = LN(f(k))."""
  return 2 * own.gain * (own.keys - own.values + own.gain * y)


def read(
    shape: shapes.Shape, before: Matrices, seen: Seen, own: Chunk
) -> Array:
  """Returns the queries' outputs, [I, N, b, D]."""
  units = functools.partial(_units, shape.dtype)
  first, second = own.gates
  scores = product(
      shape.dtype, "inqd,inkd->inqk", jnp.float32, own.queries, own.keys
  )
  x = [
      units(before.w1, first.weights * own.queries),
      units(before.s1, first.momentum * own.queries),
      product(
          shape.dtype,
          "inhk,inqk->inhq",
          shape.dtype,
          seen.delta_1,
          -first.gradients * scores,
      ),
  ]
  reads = _gelu_of_sum(*x)
  scores = product(
      shape.dtype, "inhq,inhk->inqk", jnp.float32, reads, seen.acts
  )
  f = second.weights * over_units(shape, reads, before.w2)
  f += second.momentum * over_units(shape, reads, before.s2)
  f += product(
      shape.dtype,
      "inqk,inkd->inqd",
      jnp.float32,
      -second.gradients * scores,
      seen.delta_2,
  )
  return own.queries + own.gain * networks.layer_norm(f)


def update(
    shape: shapes.Shape, before: Matrices, seen: Seen, own: Chunk
) -> Matrices:
  """Returns the state behind the chunk."""

  def layer(w, s, c, left, right):
    def change(factors):
      rows = -jnp.swapaxes(factors, -1, -2) * right
      x = product(shape.dtype, "inhb,inbd->inhd", shape.dtype, left, rows)
      return x.astype(jnp.float32)

    new = (
        c.last_weights * w + c.last_momentum * s + change(c.last_gradients),
        c.momentum_kept * s + change(c.momentum_gradients),
    )
    return [x.astype(shape.dtype) for x in new]

  first, second = own.gates
  w1, s1 = layer(before.w1, before.s1, first, seen.delta_1, own.keys)
  w2, s2 = layer(before.w2, before.s2, second, seen.acts, seen.delta_2)
  return Matrices(w1, w2, s1, s2)


@jax.custom_vjp
def _gelu_of_sum(*parts: Array) -> Array:
  """Returns gelu of a sum, of which a rounded number is kept."""
  return _gelu_of_sum_fwd(*parts)[0]


def _gelu_of_sum_fwd(*parts):
  x = functools.reduce(jnp.add, (part.astype(jnp.float32) for part in parts))
  dtype = parts[0].dtype
  y, x = shapes.round_to(dtype, networks.ACTIVATIONS["gelu"](x), x)
  return y, (x, len(parts))


def _gelu_of_sum_bwd(residuals, dy):
  x, count = residuals
  slope = networks.gelu_slope(x.astype(jnp.float32))
  return ((slope * dy).astype(dy.dtype),) * count


_gelu_of_sum.defvjp(_gelu_of_sum_fwd, _gelu_of_sum_bwd)


def _units(dtype, matrix: Array, rows: Array) -> Array:
  """Returns [hidden, D] times [b, D], hidden units by tokens."""
  return product(dtype, "inhd,inbd->inhb", dtype, matrix, rows)


def over_units(shape: shapes.Shape, units: Array, matrix: Array) -> Array:
  """Returns the sum over hidden units, float32 [b, D]."""
  return product(shape.dtype, "inhb,inhd->inbd", jnp.float32, units, matrix)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def product(dtype, subscripts: str, out, left: Array, right: Array) -> Array:
  """Returns an einsum in `out` of operands in `dtype`, summed up in float32.

  Its derivatives are such products, in the dtypes of the operands as they came.
  """
  return jnp.einsum(
      subscripts,
      left.astype(dtype),
      right.astype(dtype),
      precision="highest" if dtype == jnp.float32 else None,
      preferred_element_type=out,
  )


def _product_fwd(dtype, subscripts, out, left, right):
  return product(dtype, subscripts, out, left, right), (left, right)


def _product_bwd(dtype, subscripts, out, operands, d_result):
  del out
  left, right = operands
  names, result = subscripts.split("->")
  names_l, names_r = names.split(",")

  return (
      product(
          dtype, f"{result},{names_r}->{names_l}", left.dtype, d_result, right
      ),
      product(
          dtype, f"{names_l},{result}->{names_r}", right.dtype, left, d_result
      ),
  )


product.defvjp(_product_fwd, _product_bwd)
