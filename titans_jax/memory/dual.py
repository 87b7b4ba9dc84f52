# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""From scalar gates to the dual form's matrices for a whole chunk.

The coefficients are those of `rule`, for gates that are scalars per token:

    G = (I - diag(1 - alpha) Z)^-1 diag(mu) P diag(theta)
    P = (I - diag(eta) Z)^-1,    P[t,j] = eta_{j+1} .. eta_t

and likewise beta, f and m. A chunk is cut into blocks of w tokens. Inside
blocks the recurrences are solved by doubling. Between blocks the matrices have
low rank: a token of block r reaches back across the block's start only through
what the recurrences hold there, two numbers per earlier token j,

    G[t,j] = lead_w[t] P[s,j] + lead_k[t] G[s,j]    s the last token before it,

one product of 2 b/w rows. So a chunk costs O(b w) elementwise operations and a
thin matrix product instead of O(b^2 log b) operations, with no logarithm or
division: exact also for alpha = 1 and eta = 0.

Everything is two-dimensional, with tokens along lanes where they come from the
gates, and moves along rows alone: what a TPU does cheaply.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

import jax
import jax.numpy as jnp

from titans_jax.memory import products
from titans_jax.memory import rule

Array = jax.Array

_LANES = 128


class SpreadGates(NamedTuple):
  """Gates of a chunk, block by block down the rows (see `spread`).

  Attributes:
    keep: 1 - alpha [w, L b].
    momentum: eta [w, L b], or None.
    written: mu as a number [w, L b], or None: every token is written.
    learning_rate: theta [L, b].
  """

  keep: Array
  momentum: Array | None
  written: Array | None
  learning_rate: Array


class Coefficients(NamedTuple):
  """The dual form's coefficients of one layer for a chunk.

  Attributes:
    start: beta, beside it f if there is momentum, for the tokens t: [b, n] or
      [b, 2 n], each repeated n times.
    gradients: G [b, b].
    last_start: the last token's (beta, f), [1, 1] each; f None without
      momentum.
    last_gradients: the last row of G [1, b].
    momentum: m of the last token [1, 1], or None.
    momentum_gradients: the last row of N [1, b], or None.
  """

  start: Array
  gradients: Array
  last_start: tuple[Array, Array | None]
  last_gradients: Array
  momentum: Array | None
  momentum_gradients: Array | None


def block_size(chunk_size: int) -> int:
  """Returns w, a divisor of the chunk size."""
  return math.gcd(chunk_size, 16 if chunk_size <= 16 or chunk_size > 64 else 8)


def spread(gate: Array) -> Array:
  """Returns a gate [L, b] as [w, L b]: at row i of block r, token r w + i."""
  width = block_size(gate.shape[1])
  blocks = gate.reshape(-1, width).T
  return jnp.repeat(blocks, width, axis=1)


def coefficients(
    gates: SpreadGates, widths: Sequence[int], dtype=None
) -> list[Coefficients]:
  """Returns every layer's coefficients.

  Args:
    gates: of a chunk.
    widths: n of each layer's `Coefficients.start`.
    dtype: of the products' operands; the result is float32 all the same.
  """
  size = gates.learning_rate.shape[1]
  keep, eta, written = gates.keep, gates.momentum, gates.written
  inside, lead_k = _block_products(keep)
  lead_w, lead_e, decays = None, None, None
  if eta is not None:
    decays, lead_e = _block_products(eta)
    lead_w = _block_solve(keep, _times(written, lead_e))
    inside = _block_solve(keep, _times(written, decays))
  elif written is not None:
    inside = _block_solve(keep, jnp.where(_own(keep), written, 0))
  result = []
  for layer, width in enumerate(widths):

    def of_layer(x, layer=layer):
      return None if x is None else x[:, layer * size : (layer + 1) * size]

    blocks = _Blocks(*map(of_layer, (inside, lead_k, decays, lead_e, lead_w)))
    rate = gates.learning_rate[layer : layer + 1]
    result.append(_layer(blocks, rate, width, dtype))
  return result


class _Blocks(NamedTuple):
  """What happens inside the blocks of one layer, [w, b] each.

  Attributes:
    inside: G of tokens t, j of one block.
    lead_k: product of 1 - alpha from the block's start to the token.
    decays: P of tokens t, j of one block.
    lead_e: product of eta from the block's start to the token.
    lead_w: W's share of an S that entered the block.
  """

  inside: Array
  lead_k: Array
  decays: Array | None
  lead_e: Array | None
  lead_w: Array | None


def _layer(blocks: _Blocks, rate: Array, width: int, dtype) -> Coefficients:
  rows, size = blocks.inside.shape
  count = size // rows
  own = _iota((count, size), 0) == jax.lax.div(
      _iota((count, size), 1), jnp.int32(rows)
  )
  # Where a lane's worth of copies costs the product nothing they come out of
  # it, which saves repeating a column over lanes.
  lanes = width if width < _LANES else 1

  def total(lead):  # [w, b] -> [count, 1], its value at the blocks' ends
    first = jax.lax.rem(_iota((count, size), 1), jnp.int32(rows)) == 0
    return jnp.sum(jnp.where(own & first, lead[-1:], 0), 1, keepdims=True)

  def ends(x):  # [w, b] -> [count, b], the last row of each block's own
    return jnp.where(own, x[-1:], 0)

  def reach(lead):  # [w, b] -> [count, b], the tokens of each block
    token = jnp.sum(jnp.where(_own(lead), lead, 0), 0, keepdims=True)
    return jnp.where(own, token, 0)

  # Values at the blocks' ends, [count, ...].
  keep = total(blocks.lead_k)
  beta = _products(jnp.broadcast_to(keep, (count, lanes)))
  leads = [reach(blocks.lead_k)]
  momentum = last_momentum = None
  if blocks.lead_e is None:
    gradients = rule.solve(keep, ends(blocks.inside))
    values = [[_before(beta, 1), _before(gradients)]]
  else:
    decay, enter = total(blocks.lead_e), total(blocks.lead_w)
    decays = rule.solve(decay, ends(blocks.decays))
    momentum = _products(jnp.broadcast_to(decay, (count, lanes)))
    gradients = rule.solve(keep, ends(blocks.inside) + enter * _before(decays))
    f = rule.solve(keep, enter * _before(momentum, 1))
    leads.append(reach(blocks.lead_w))
    values = [
        [_before(beta, 1), _before(f), _before(gradients)],
        [jnp.zeros_like(beta), _before(momentum, 1), _before(decays)],
    ]
    last_momentum = momentum[-1:, :1]
    momentum = decays[-1:] * rate
  if lanes == 1:  # G first: a whole tile.
    values = [row[-1:] + row[:-1] for row in values]
  values = [jnp.concatenate(row, axis=1) for row in values]
  across = products.exact_tn(
      jnp.concatenate(leads), jnp.concatenate(values), dtype
  )
  shares = across.shape[1] - size
  if lanes == 1:
    matrix = across[:, :size]
    columns = [across[:, size + i : size + i + 1] for i in range(shares)]
    start = jnp.concatenate(
        [jnp.broadcast_to(c, (size, width)) for c in columns], axis=1
    )
  else:
    start, matrix = across[:, :shares], across[:, shares:]
  own_rows = [jnp.where(own[r : r + 1], blocks.inside, 0) for r in range(count)]
  matrix = (matrix + jnp.concatenate(own_rows)) * rate
  return Coefficients(
      start=start,
      gradients=matrix,
      last_start=(
          start[-1:, :1],
          None if blocks.lead_e is None else start[-1:, width : width + 1],
      ),
      last_gradients=matrix[-1:],
      momentum=last_momentum,
      momentum_gradients=momentum,
  )


def _iota(shape, axis: int) -> Array:
  return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _place(x: Array) -> Array:
  """Returns the place in its block of every column of [w, L b]."""
  return jax.lax.rem(_iota(x.shape, 1), jnp.int32(x.shape[0]))


def _own(x: Array) -> Array:
  """Returns where row and column of [w, L b] are the same token."""
  return _iota(x.shape, 0) == _place(x)


def _times(written: Array | None, x: Array) -> Array:
  return x if written is None else written * x


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


def _block_products(gate: Array) -> tuple[Array, Array]:
  """Of a spread gate [w, n]: its products from token j + 1 to t of a block (1
  for j = t, 0 beyond), and from the block's first token to t."""
  row, place = _iota(gate.shape, 0), _place(gate)
  inside = _products(jnp.where(place < row, gate, 1))
  return jnp.where(place <= row, inside, 0), _products(gate)


def _block_solve(keep: Array, x: Array) -> Array:
  """Returns y with y_t = x_t + keep_t y_{t-1} inside the blocks."""
  return rule.solve(jnp.where(_iota(keep.shape, 0) > 0, keep, 0), x)
