# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""From scalar gates to the dual form's coefficients.

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
from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp

from titans_jax.memory import products
from titans_jax.memory import rule

Array = jax.Array

# Rows of a TPU's register.
_ROWS = 8
# Tokens from which on a step from token to token takes several registers.
_LONG = 512


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
  return math.gcd(chunk_size, _ROWS if chunk_size < _LONG else 8 * _ROWS)


def arrange(x: Array) -> Array:
  """Lays out tokens [b, ...]: token i of block r to row i c + r."""
  blocks = x.reshape(_blocks(x.shape[0]), -1, *x.shape[1:])
  return jnp.swapaxes(blocks, 0, 1).reshape(x.shape)


def restore(x: Array) -> Array:
  """Undoes `arrange`."""
  blocks = x.reshape(-1, _blocks(x.shape[0]), *x.shape[1:])
  return jnp.swapaxes(blocks, 0, 1).reshape(x.shape)


class _Inside(NamedTuple):
  """What the recurrences inside the blocks hold at their tokens i, [c, L b].

  Of a value that enters a block there are leads: how far it reaches the token,
  [c, L b] or [c, 1].

  Attributes:
    p: P's rows, columns of the own block; None without momentum.
    g: likewise G's, but for theta.
    weights: the lead of a W, the product of 1 - alpha from the block's start.
    momentum: the lead of an S, the product of eta; None without momentum.
    entered: W's share of an S that entered the block, or None.
  """

  p: Any = None
  g: Any = None
  weights: Any = None
  momentum: Any = None
  entered: Any = None

  def follow(self, own: Array, keep, eta, mu) -> _Inside:
    """Returns what they hold at the next tokens, given those' own columns."""
    p = entered = enters = None
    if eta is None:
      g = jnp.where(own, 1.0 if mu is None else mu, _times(keep, self.g, 0.0))
      g = g.astype(keep.dtype)
    else:
      p = jnp.where(own, 1.0, _times(eta, self.p, 0.0)).astype(eta.dtype)
      g = _plus(_times(mu, p, p), _times(keep, self.g))
      enters = _times(eta, self.momentum, eta)
      entered = _plus(_times(mu, enters, enters), _times(keep, self.entered))
    return _Inside(p, g, _times(keep, self.weights, keep), enters, entered)


def _own_columns(i, count: int, layers: int, size: int) -> Array:
  """Returns whether a column is the row's own token i, bool [c, L b]."""
  lane = jax.lax.rem(_iota((count, layers * size), 1), jnp.int32(size))
  return lane - _iota(lane.shape, 0) == i * count


def coefficients(gates: Gates) -> list[Coefficients]:
  """Returns every layer's coefficients, rows and columns as arranged."""
  layers, size = gates.keep.shape
  count = _blocks(size)
  steps = size // count

  def follow(before, token):
    i, *token = token
    own = _own_columns(i, count, 1, size)
    after = before.follow(own, *token)
    return after, after._replace(p=None)

  def rows(x):  # [b / c, c, ...] -> [b, ...]
    return x.reshape(size, -1)

  def of_layer(layer: int) -> Coefficients:
    def by_token(x):  # [L, b] -> [b / c, c, 1]
      return x[layer % len(x)].reshape(steps, count, 1)

    tokens = keep, eta, _ = jax.tree.map(by_token, gates[:3])
    zeros = jnp.zeros((count, size), keep.dtype)
    ones = jnp.ones_like(keep[0])
    start = _Inside(g=zeros, weights=ones)
    if eta is not None:
      start = _Inside(zeros, zeros, ones, ones, zeros[:, :1])
    last, inside = jax.lax.scan(follow, start, (jnp.arange(steps), *tokens))
    rate = gates.learning_rate[:, layer * size : (layer + 1) * size]
    joined = _joined(rate, last, lambda fn: jax.tree.map(rows, fn(inside)))
    last_row = jax.tree.map(lambda x: x[-1:], joined[3:])
    return Coefficients(*joined[:3], *last_row)

  return [of_layer(layer) for layer in range(layers)]


def coefficients_in_kernel(
    gates: Gates, widths: Sequence[int], dtype: Any = None
) -> list[Coefficients]:
  """Returns the same, layers computed side by side and loops unrolled, which
  fills a TPU's registers. XLA would fuse the steps of unrolled loops into one
  another, over and over.

  Args:
    gates: of a chunk.
    widths: n of each layer, which beta and f are repeated to if that is free.
    dtype: of the operands of products, of which there are some in the
      derivative only.
  """
  layers, size = gates.keep.shape
  count = _blocks(size)
  steps = size // count

  def by_token(x):  # [b, L b] -> of tokens i: [c, L b]
    return [None] * steps if x is None else jnp.split(x, steps)

  tokens = zip(*map(by_token, _over_lanes(layers, dtype, gates[:3])))
  inside = [_Inside()]
  for i, token in enumerate(tokens):
    own = _own_columns(i, count, layers, size)
    inside.append(inside[-1].follow(own, *token))
  together = _joined(
      gates.learning_rate,
      inside[-1],
      lambda fn: jax.tree.map(_concatenate, *map(fn, inside[1:])),
  )

  def by_layer(x):
    return [None] * layers if x is None else jnp.split(x, layers, axis=1)

  def last_by_layer(x):
    return [
        None if x is None else x[-1:, i * size : (i + 1) * size]
        for i in range(layers)
    ]

  def narrow(c: Coefficients, width: int) -> Coefficients:
    def column(x):
      if x is None or width == size:
        return x
      return x[:, : width if width < size else 1]

    def number(x):
      return None if x is None else x[:, :1]

    return c._replace(
        weights=column(c.weights),
        momentum=column(c.momentum),
        last_weights=number(c.last_weights),
        last_momentum=number(c.last_momentum),
        momentum_kept=number(c.momentum_kept),
    )

  of_layers = zip(
      *map(by_layer, together[:3]), *map(last_by_layer, together[3:])
  )
  return [
      narrow(Coefficients(*each), width)
      for each, width in zip(of_layers, widths)
  ]


def _joined(
    rate: Array,
    last: _Inside,
    rows: Callable[[Callable[[_Inside], Any]], Any],
) -> Coefficients:
  """Joins the blocks.

  Args:
    rate: theta, [1, L b].
    last: what holds at the last tokens of the blocks.
    rows: a function of what holds at tokens i -> its results for all, rows.

  Returns:
    Coefficients of all layers, side by side. The last token's are the last row
    of what should be them.
  """
  betas = _products(last.weights)
  enters_beta, momentum = _before(betas, 1), last.momentum is not None
  g, m = last.g, None
  if momentum:
    p = rule.solve(last.momentum, last.p)
    m = _products(last.momentum)
    enters_p, enters_m = _before(p), _before(m, 1)
    g = g + last.entered * enters_p
    enters_f = _before(rule.solve(last.weights, last.entered * enters_m))
  enters_g = _before(rule.solve(last.weights, g))

  def of_token(token: _Inside):
    """Returns beta, f and G."""
    beta, f = token.weights * enters_beta, None
    g = token.g + token.weights * enters_g
    if momentum:
      g = g + token.entered * enters_p
      f = token.weights * enters_f + token.entered * enters_m
    return beta, f, g * rate

  last_n = p[-1:] * rate if momentum else None
  return Coefficients._make((*rows(of_token), *of_token(last), m, last_n))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _over_lanes(layers: int, dtype: Any, gates: Sequence[Any]):
  """Returns gates [L, b], or [1, b] for all layers, or None, as [b, L b]: a
  token's row has its gate in all lanes of a layer."""
  del dtype
  size = gates[0].shape[1]
  columns = jnp.concatenate([x for x in gates if x is not None]).T
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
  return tuple(result)


def _over_lanes_bwd(layers, dtype, gates, gradients):
  # Sums over lanes that come out as rows: products with ones.
  size = gates[0].shape[1]

  def back(x, g):
    if x is None:
      return None
    lane = _iota((x.shape[0], layers * size), 1)
    block = jax.lax.div(lane, jnp.int32(size))
    is_own = (_iota(lane.shape, 0) == block) | (x.shape[0] == 1)
    return products.matmul_nt(is_own.astype(g.dtype), g, dtype)

  return (tuple(map(back, gates, gradients)),)


_over_lanes.defvjp(
    lambda layers, dtype, gates: (_over_lanes(layers, dtype, gates), gates),
    _over_lanes_bwd,
)


def _concatenate(*rows: Array) -> Array:
  return jnp.concatenate(rows)


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
