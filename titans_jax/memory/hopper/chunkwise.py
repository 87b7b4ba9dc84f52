# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Many chunks at once, each from the state before it, by XLA.

What `forward` computes, for its derivative: with the state before every chunk at
hand, no chunk waits for another. Laid out as in the kernels, hidden units by
tokens, so that neither operands nor states are transposed; activations and their
cotangents are in the products' dtype, which halves what goes through main memory,
where most of the time goes; and a token's factors act on its [D] numbers, not on
its hidden units.
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

_gelu = networks.ACTIVATIONS["gelu"]


class Seen(NamedTuple):
  """What is known of a chunk's keys.

  Attributes:
    z: first layer's outputs, [I, N, hidden, b].
    acts: gelu(z).
    slopes: gelu'(z).
    f: the second layer's outputs f(k), float32 [I, N, b, D].
    d_norm: the loss's gradient by LN(f(k)), likewise.
    deltas: by f(k), delta_2.
    back: W_2 delta_2^T, [I, N, hidden, b].
  """

  z: Array
  acts: Array
  slopes: Array
  f: Array
  d_norm: Array
  deltas: Array
  back: Array


def run(
    shape: shapes.Shape,
    states: shapes.State,
    chunks: chunk_lib.Prepared,
    params: networks.Params,
    starts: Array | None = None,
    initial: shapes.State | None = None,
) -> tuple[shapes.State, tuple[Array, Array], Seen]:
  """Runs every chunk from its own state.

  Args:
    shape: sizes.
    states: before every chunk, leaves [I, N, hidden / 64, 64, D], without rests.
    chunks: leaves [B, H, N, ...], with coefficients.
    params: of the network.
    starts: bool [B, H, N], where a document starts, or None.
    initial: state that it starts from, leaves [I, ...].

  Returns:
    The states behind every chunk; outputs [B, H, N, b, D] and losses
    [B, H, N, 1, b]; and what was seen on the way.
  """
  lead, dtype = chunks.keys.shape[:3], shape.dtype
  flat = functools.partial(shapes.flat, shape)
  if starts is not None:
    starts = flat(starts)[..., None, None, None]
    states = jax.tree.map(
        lambda start, x: jnp.where(starts, start[:, None], x), initial, states
    )
  (w1, w2), (s1, s2) = jax.tree.map(
      lambda x: x.reshape(*x.shape[:2], shape.hidden, shape.width), states[:2]
  )
  keys, values, queries = map(
      flat, (chunks.keys, chunks.values, chunks.queries)
  )
  gates: Any = jax.tree.map(flat, chunks.gates)
  first, second = gates
  gain = shapes.gains(shape, params, lead[1])[:, None, None]

  product = functools.partial(_product, dtype)
  units = functools.partial(product, "inhd,inbd->inhb", dtype)
  tokens = functools.partial(product, "inhb,inhd->inbd", jnp.float32)
  weights = functools.partial(product, "inhb,inbd->inhd", dtype)
  scores = functools.partial(product, "inqx,inkx->inqk", jnp.float32)

  z = units(w1, keys)
  acts, slopes = (
      _at_least_float32(fn, z) for fn in (_gelu, networks.gelu_slope)
  )
  f = tokens(acts, w2)
  error = keys - values + gain * networks.layer_norm(f)
  losses = jnp.sum(error * error, axis=-1)
  d_norm = 2 * gain * error
  deltas = networks.layer_norm_back(f, d_norm)
  back = units(w2, deltas)
  delta = (slopes.astype(jnp.float32) * back).astype(dtype)

  parts = (
      units(w1, first.weights * queries),
      units(s1, first.momentum * queries),
      product(
          "inhk,inqk->inhq",
          dtype,
          delta,
          -first.gradients * scores(queries, keys),
      ),
  )
  x = functools.reduce(jnp.add, [part.astype(jnp.float32) for part in parts])
  reads = _gelu(x).astype(dtype)
  f_reads = second.weights * tokens(reads, w2)
  f_reads += second.momentum * tokens(reads, s2)
  alike = product("inhq,inhk->inqk", jnp.float32, reads, acts)
  f_reads += product(
      "inqk,inkd->inqd", jnp.float32, -second.gradients * alike, deltas
  )
  outputs = queries + gain * networks.layer_norm(f_reads)

  def update(w, s, c, left, right):
    def change(factors):
      factors = jnp.swapaxes(factors, -1, -2)
      return weights(left, factors * right).astype(jnp.float32)

    new_s = c.momentum_kept * s - change(c.momentum_gradients)
    new_w = c.last_weights * w + c.last_momentum * s - change(c.last_gradients)
    return [
        x.astype(dtype).reshape(states.weights[0].shape) for x in (new_w, new_s)
    ]

  (w1, s1), (w2, s2) = (
      update(w1, s1, first, delta, keys),
      update(w2, s2, second, acts, deltas),
  )
  return (
      shapes.State((w1, w2), (s1, s2), ()),
      (
          outputs.reshape(chunks.queries.shape),
          losses.reshape(*lead, 1, shape.chunk),
      ),
      Seen(z, acts, slopes, f, d_norm, deltas, back),
  )


def _at_least_float32(fn, x: Array) -> Array:
  return fn(x.astype(jnp.float32)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(dtype, subscripts: str, out, left: Array, right: Array) -> Array:
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
  return _product(dtype, subscripts, out, left, right), (left, right)


def _product_bwd(dtype, subscripts, out, operands, d_result):
  del out
  left, right = operands
  names, result = subscripts.split("->")
  names_l, names_r = names.split(",")

  def product(subscripts, out, *operands):
    return _product(dtype, subscripts, out, *operands)

  return (
      product(f"{result},{names_r}->{names_l}", left.dtype, d_result, right),
      product(f"{names_l},{result}->{names_r}", right.dtype, left, d_result),
  )


_product.defvjp(_product_fwd, _product_bwd)
