# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A dense layer of the memory over one chunk: its read and its update.

Both are linear in what the chunk's tokens did (v1 §3.2): with a_j the layer's
input and delta_j the gradient at its output for token j,

    read:    y_t = beta_t (x_t W) + f_t (x_t S) - sum_j G[t,j] (x_t . a_j) delta_j
    update:  W' = beta W + f S - sum_j g_j a_j (x) delta_j,    g the last row of G
             S' = m S - sum_j n_j a_j (x) delta_j.

Weights come turned, the longer side along lanes: W and S are [n, m], n <= m, and
x W is x W^T where the layer's input is the longer side. Of a token's a and delta
one is then short, [n], the other long, [m].

The derivatives are written out: each is again a few products of the same three
kinds, factors act on the shorter side, and nothing of the size of a weight is
made that is not a result.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from titans_jax.memory import dual
from titans_jax.memory import products

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Form:
  """What is static about a layer.

  Attributes:
    turned: whether the layer's input is the longer side.
    dtype: of the products' operands; None: as they come.
  """

  turned: bool
  dtype: Any = None

  def times(self, x: Array, matrix: Array) -> Array:
    """Returns x times a layer's turned matrix."""
    product = products.matmul_nt if self.turned else products.matmul
    return product(x, matrix, self.dtype)


# ------------------------------------------------------------------------------
# Read.


def read(
    form: Form,
    weights: Array,
    momentum: Array | None,
    coefficients: dual.Coefficients,
    inputs: Array,
    deltas: Array,
    x: Array,
) -> Array:
  """Returns the layer's output for the queries' activation.

  Args:
    form: of the layer.
    weights: W at the chunk's start, turned.
    momentum: S, or None.
    coefficients: for the chunk.
    inputs: a of the chunk's tokens, [b, d_in].
    deltas: delta of the chunk's tokens, [b, d_out].
    x: [b, d_in].
  """
  c = coefficients
  parts = [(c.weights, weights)]
  if momentum is not None:
    parts.append((c.momentum, momentum))
  shares, matrices = zip(*parts)
  return _read(form, matrices, shares, c.gradients, inputs, deltas, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(form, matrices, shares, gradients, inputs, deltas, x):
  return _read_fwd(form, matrices, shares, gradients, inputs, deltas, x)[0]


def _read_fwd(form, matrices, shares, gradients, inputs, deltas, x):
  scores = products.matmul_nt(x, inputs, form.dtype)
  # G with its sign, so that every part of the sum is a product.
  y = products.matmul(-gradients * scores, deltas, form.dtype)
  plain = []
  for share, matrix in zip(shares, matrices):
    if form.turned:
      plain.append(form.times(x, matrix))
      y += share * plain[-1]
    else:
      y += form.times(share * x, matrix)
  return y, (matrices, shares, gradients, inputs, deltas, x, scores, plain)


def _read_bwd(form, residuals, dy):
  matrices, shares, gradients, inputs, deltas, x, scores, plain = residuals
  dtype = form.dtype
  # Of -G * scores and its two factors; the minus stays on this side.
  d_weighed = products.matmul_nt(dy, deltas, dtype)
  d_gradients = -d_weighed * scores
  d_scores = -d_weighed * gradients
  d_deltas = products.matmul_tn(-gradients * scores, dy, dtype)
  d_inputs = products.matmul_tn(d_scores, x, dtype)
  dx = products.matmul(d_scores, inputs, dtype)
  d_matrices, d_shares = [], []
  for i, (share, matrix) in enumerate(zip(shares, matrices)):
    if form.turned:
      scaled = share * dy
      dx += products.matmul(scaled, matrix, dtype)
      d_matrices.append(products.matmul_tn(scaled, x, dtype))
      d_share = dy * plain[i]
    else:
      back = products.matmul_nt(dy, matrix, dtype)
      dx += share * back
      d_matrices.append(products.matmul_tn(share * x, dy, dtype))
      d_share = x * back
    d_shares.append(_sum_to(d_share, share))
  return (
      tuple(d_matrices),
      tuple(d_shares),
      d_gradients,
      d_inputs,
      d_deltas,
      dx,
  )


_read.defvjp(_read_fwd, _read_bwd)


def _sum_to(gradient: Array, column: Array) -> Array:
  if column.shape == gradient.shape:
    return gradient
  return jnp.sum(gradient, axis=1, keepdims=True)


# ------------------------------------------------------------------------------
# Update.


def update(
    form: Form,
    weights: Array,
    momentum: Array | None,
    coefficients: dual.Coefficients,
    inputs: Array,
    deltas: Array,
    closes: Array | None,
) -> tuple[Array, ...]:
  """Returns the layer's (W', S'), or (W',) without momentum, turned.

  Args:
    form: of the layer.
    weights: W at the chunk's start, turned.
    momentum: S, or None.
    coefficients: for the chunk.
    inputs: a of the chunk's tokens, [b, d_in].
    deltas: delta of the chunk's tokens, [b, d_out].
    closes: bool [1, 1], whether the chunk closes; None: it does.
  """
  c = coefficients

  def if_closed(value, otherwise):
    return value if closes is None else jnp.where(closes, value, otherwise)

  short, long = (deltas, inputs) if form.turned else (inputs, deltas)
  rows = [if_closed(c.last_gradients, 0)]
  factors = [if_closed(c.last_weights, 1)]
  if momentum is None:
    return _update(form, (weights,), factors, rows, short, long)
  rows.append(if_closed(c.momentum_gradients, 0))
  factors += [if_closed(c.last_momentum, 0), if_closed(c.momentum_kept, 1)]
  return _update(form, (weights, momentum), factors, rows, short, long)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _update(form, matrices, factors, rows, short, long):
  return _update_fwd(form, matrices, factors, rows, short, long)[0]


def _update_fwd(form, matrices, factors, rows, short, long):
  turned = short.T
  change = products.matmul(
      jnp.concatenate([turned * -row for row in rows]), long, form.dtype
  )
  if len(matrices) == 1:
    new = (factors[0] * matrices[0] + change,)
  else:
    (w, s), (beta, f, m), n = matrices, factors, turned.shape[0]
    new = (beta * w + f * s + change[:n], m * s + change[n:])
  return new, (matrices, factors, rows, short, long)


def _update_bwd(form, residuals, cotangents):
  matrices, factors, rows, short, long = residuals
  dtype = form.dtype
  d_short = d_long = 0
  d_rows = []
  for row, d_matrix in zip(rows, cotangents):
    column = -row.T
    back = products.matmul_nt(long, d_matrix, dtype)
    d_short += column * back
    d_long += products.matmul(column * short, d_matrix, dtype)
    # Sums over lanes that come out as a row: a product with ones.
    ones = jnp.full((1, back.shape[1]), -1, back.dtype)
    d_rows.append(products.matmul_nt(ones, short * back, dtype))

  def dot(a, b):
    return jnp.sum(jnp.sum(a * b, axis=0, keepdims=True), 1, keepdims=True)

  if len(matrices) == 1:
    (w,), (beta,), (dw,) = matrices, factors, cotangents
    d_matrices, d_factors = (beta * dw,), [dot(dw, w)]
  else:
    (w, s), (beta, f, m), (dw, ds) = matrices, factors, cotangents
    d_matrices = beta * dw, f * dw + m * ds
    d_factors = [dot(dw, w), dot(dw, s), dot(ds, s)]
  return d_matrices, d_factors, d_rows, d_short, d_long


_update.defvjp(_update_fwd, _update_bwd)
