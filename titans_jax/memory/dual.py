# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""From scalar gates to the dual form's coefficients, inside a kernel.

The coefficients are those of `rule`, for gates that are scalars per token:

    G = (I - diag(1 - alpha) Z)^-1 diag(mu) P diag(theta)
    P = (I - diag(eta) Z)^-1,    P[t,j] = eta_{j+1} .. eta_t

and likewise beta, f and m: everywhere recurrences over the tokens t, one for
every column j. A chunk is cut into c blocks of w tokens, and its tokens are laid
out (`arrange`) so that row i c + r is token i of block r. So one register holds
tokens i of all blocks as rows, and the recurrences inside all blocks run at
once, from register to register, without moving anything. What enters block r is
what the recurrences hold at the end of block r - 1, one short recurrence over
rows; with it, a token's row is

    G[t,:] = inside[t,:] + lead_k[t] G[s,:] + lead_w[t] P[s,:],    s before r.

There is no logarithm and no division: exact also for alpha = 1 and eta = 0.
Columns are those of all layers next to each other, layer l and token j at l b +
j, so that registers are full.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp

from titans_jax.memory import products
from titans_jax.memory import rule

Array = jax.Array

# Rows of a TPU's register.
_ROWS = 8


class Gates(NamedTuple):
  """Gates of a chunk, tokens as arranged.

  Attributes:
    keep: 1 - alpha [L, b].
    momentum: eta [L, b], or None.
    written: mu as a number [1, b], or None: every token is written.
    learning_rate: theta, layer by layer: [1, L b].
  """

  keep: Array
  momentum: Array | None
  written: Array | None
  learning_rate: Array


class Coefficients(NamedTuple):
  """The dual form's coefficients of one layer for a chunk of scalar gates.

  Attributes:
    weights: beta of every token, [b, 1], or repeated n times.
    momentum: f of every token, likewise; None without momentum.
    gradients: G [b, b].
    last_weights: beta of the last token [1, 1].
    last_momentum: f of the last token [1, 1], or None.
    last_gradients: the last row of G [1, b].
    momentum_kept: m of the last token [1, 1], or None.
    momentum_gradients: the last row of N [1, b], or None.
  """

  weights: Array
  momentum: Array | None
  gradients: Array
  last_weights: Array
  last_momentum: Array | None
  last_gradients: Array
  momentum_kept: Array | None
  momentum_gradients: Array | None


def _blocks(chunk_size: int) -> int:
  return math.gcd(chunk_size, _ROWS)


def arrange(x: Array) -> Array:
  """Lays out tokens [b, ...]: token i of block r to row i c + r."""
  blocks = x.reshape(_blocks(x.shape[0]), -1, *x.shape[1:])
  return jnp.swapaxes(blocks, 0, 1).reshape(x.shape)


def restore(x: Array) -> Array:
  """Undoes `arrange`."""
  blocks = x.reshape(-1, _blocks(x.shape[0]), *x.shape[1:])
  return jnp.swapaxes(blocks, 0, 1).reshape(x.shape)


def coefficients(
    gates: Gates, widths: Sequence[int], dtype: Any = None
) -> list[Coefficients]:
  """Returns every layer's coefficients, rows and columns as arranged.

  Args:
    gates: of a chunk.
    widths: n of each layer, which beta and f are repeated to if that is free.
    dtype: of the operands of products, of which there are some in the
      derivative only.
  """
  layers, size = gates.keep.shape
  count = _blocks(size)

  def by_token(x):  # [b, L b] -> of tokens i: [c, L b]
    if x is None:
      return [None] * (size // count)
    return jnp.split(x, size // count)

  given = _over_lanes(layers, dtype, gates[:3])
  lane = jax.lax.rem(_iota((count, layers * size), 1), jnp.int32(size))
  place = lane - _iota(lane.shape, 0)
  p = g = None
  lead = _Lead(None, None, None)
  inside = []
  for i, (keep, eta, mu) in enumerate(zip(*map(by_token, given))):
    own = place == i * count
    entered = enters = None
    if eta is None:
      g = jnp.where(own, 1.0 if mu is None else mu, _times(keep, g, 0.0))
    else:
      p = jnp.where(own, 1.0, _times(eta, p, 0.0))
      g = _plus(_times(mu, p, p), _times(keep, g))
      enters = _times(eta, lead.momentum, eta)
      entered = _plus(_times(mu, enters, enters), _times(keep, lead.entered))
    lead = _Lead(_times(keep, lead.weights, keep), enters, entered)
    inside.append((g, lead))
  return _joined(gates, widths, inside, p)


class _Lead(NamedTuple):
  """How far a value that enters a block reaches a token of it, [c, L b].

  Attributes:
    weights: the product of 1 - alpha from the block's start to the token; None
      before the first.
    momentum: the product of eta; None without momentum.
    entered: W's share of an S that entered the block, or None.
  """

  weights: Array | None
  momentum: Array | None
  entered: Array | None


def _joined(gates: Gates, widths, inside, p) -> list[Coefficients]:
  """Joins the blocks: their own shares and leads of every token i."""
  layers, size = gates.keep.shape
  rate = gates.learning_rate
  g, end = inside[-1]
  betas = _products(end.weights)
  enters_beta, momentum = _before(betas, 1), end.momentum is not None
  if momentum:
    p = rule.solve(end.momentum, p)
    m = _products(end.momentum)
    enters_p, enters_m = _before(p), _before(m, 1)
    g = g + end.entered * enters_p
    enters_f = _before(rule.solve(end.weights, end.entered * enters_m))
  enters_g = _before(rule.solve(end.weights, g))
  rows_g, rows_beta, rows_f = [], [], []
  for g, lead in inside:
    rows_beta.append(lead.weights * enters_beta)
    g = g + lead.weights * enters_g
    if momentum:
      g = g + lead.entered * enters_p
      rows_f.append(lead.weights * enters_f + lead.entered * enters_m)
    rows_g.append(g * rate)
  # The last token is the last row of the last.
  ends = rows_g[-1], rows_beta[-1], rows_f[-1] if momentum else None

  def by_layer(rows):
    if not rows:
      return [None] * layers
    return jnp.split(jnp.concatenate(rows), layers, axis=1)

  gradients, beta, f = map(by_layer, (rows_g, rows_beta, rows_f))

  def coefficients_of(layer: int, width: int) -> Coefficients:
    def column(x):
      if x is None or width == size:
        return x
      return x[:, : width if width < size else 1]

    def own(x):
      if x is None:
        return None
      return x[-1:, layer * size : (layer + 1) * size]

    def first(x):
      return None if x is None else own(x)[:, :1]

    last_g, last_beta, last_f = ends
    return Coefficients(
        weights=column(beta[layer]),
        momentum=column(f[layer]),
        gradients=gradients[layer],
        last_weights=first(last_beta),
        last_momentum=first(last_f),
        last_gradients=own(last_g),
        momentum_kept=first(m) if momentum else None,
        momentum_gradients=own(p[-1:] * rate) if momentum else None,
    )

  return [coefficients_of(*each) for each in enumerate(widths)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _over_lanes(layers: int, dtype: Any, gates) -> list[Array | None]:
  """Returns gates [L, b], or [1, b] for all layers, or None, as [b, L b]: a
  token's row has its gate in all lanes of a layer."""
  del dtype
  columns = jnp.concatenate([x for x in gates if x is not None]).T
  size = columns.shape[0]
  lane = _iota((size, layers * size), 1)

  def spread(first, many):
    x = jnp.broadcast_to(columns[:, first : first + 1], lane.shape)
    for layer in range(1, many):
      column = columns[:, first + layer : first + layer + 1]
      x = jnp.where(lane < layer * size, x, column)
    return x

  result, first = [], 0
  for x in gates:
    many = 0 if x is None else x.shape[0]
    result.append(spread(first, many) if many else None)
    first += many
  return result


def _over_lanes_bwd(layers, dtype, gates, gradients):
  # Sums over lanes that come out as rows: products with ones.
  def back(x, g):
    if x is None:
      return None
    many, size = x.shape
    lane = _iota((many, layers * size), 1)
    block = jax.lax.div(lane, jnp.int32(size))
    is_own = (_iota(lane.shape, 0) == block) | (many == 1)
    return products.matmul_nt(is_own.astype(g.dtype), g, dtype)

  return (tuple(map(back, gates, gradients)),)


_over_lanes.defvjp(
    lambda layers, dtype, gates: (_over_lanes(layers, dtype, gates), gates),
    _over_lanes_bwd,
)


def _iota(shape, axis: int) -> Array:
  return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _times(factor, x, otherwise=None):
  """Returns factor * x, of which either may be missing."""
  return otherwise if factor is None or x is None else factor * x


def _plus(x, y):
  return x if y is None else x + y


def _before(x: Array, first: float = 0) -> Array:
  """Returns rows r - 1 at rows r, and `first` at row 0."""
  return rule.shift(x, 1, first)


def _products(x: Array) -> Array:
  """Returns the running products down the rows."""
  steps = 1
  while steps < x.shape[0]:
    x = x * rule.shift(x, steps, 1)
    steps *= 2
  return x
