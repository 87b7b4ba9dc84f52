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

    G[t,:] = g[t,:] + weights[t] G[s,:] + entered[t] P[s,:],    s before r,

with the shares that `_Rows` has. There is no logarithm and no division: exact
also for alpha = 1 and eta = 0. In a kernel columns are those of all layers next
to each other, layer l and token j at l b + j, so that registers are full.
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


def blocks_of(chunk_size: int) -> int:
  """Returns c, the blocks that a chunk is cut into."""
  return math.gcd(chunk_size, _ROWS if chunk_size < _LONG else 8 * _ROWS)


def arrange(x: Array) -> Array:
  """Lays out tokens [b, ...]: token i of block r to row i c + r."""
  blocks = x.reshape(blocks_of(x.shape[0]), -1, *x.shape[1:])
  return jnp.swapaxes(blocks, 0, 1).reshape(x.shape)


def restore(x: Array) -> Array:
  """Undoes `arrange`."""
  blocks = x.reshape(-1, blocks_of(x.shape[0]), *x.shape[1:])
  return jnp.swapaxes(blocks, 0, 1).reshape(x.shape)


class _Rows(NamedTuple):
  """What the recurrences hold at a token of each block, [c, L b], counted from
  the block's start; or, entering blocks, from the chunk's.

  Attributes:
    p: P's rows; None without momentum.
    g: G's rows, but for theta.
    weights: W's share of W at the start, [c, L b] or [c, 1].
    momentum: S's share of S at the start, likewise; None without momentum.
    entered: W's share of S at the start, or None.
  """

  p: Any = None
  g: Any = None
  weights: Any = None
  momentum: Any = None
  entered: Any = None

  def follow(self, own: Array, keep, eta, mu) -> _Rows:
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
    return _Rows(p, g, _times(keep, self.weights, keep), enters, entered)

  def after(self, before: _Rows) -> _Rows:
    """Returns what they hold when `before` is what entered the blocks."""
    p = momentum = entered = None
    weights = self.weights * before.weights
    g = self.g + self.weights * before.g
    if self.momentum is not None:
      g = g + self.entered * before.p
      entered = self.weights * before.entered + self.entered * before.momentum
      momentum = self.momentum * before.momentum
      if self.p is not None:
        p = self.p + self.momentum * before.p
    return _Rows(p, g, weights, momentum, entered)


def _own_columns(i, count: int, layers: int, size: int) -> Array:
  """Returns whether a column is the row's own token i, bool [c, L b]."""
  lane = jax.lax.rem(_iota((count, layers * size), 1), jnp.int32(size))
  return lane - _iota(lane.shape, 0) == i * count


def coefficients(gates: Gates) -> list[Coefficients]:
  """Returns every layer's coefficients of many chunks.

  Args:
    gates: leaves [..., N, L, b], [..., N, 1, b] or [..., N, 1, L b].

  Returns:
    Coefficients of each layer, leaves [..., N, r, c], rows and columns as
    arranged.
  """
  *lead, chunks, layers, size = gates.keep.shape

  def by_layer(x):
    # Next to the chunks: XLA's CPU backend cannot reduce more than five axes.
    x = x.reshape(*lead, chunks, -1, size)
    x = jnp.broadcast_to(x, (*lead, chunks, layers, size))
    return x.reshape(*lead, chunks * layers, size)

  of_layer = _of_layer
  for _ in range(len(lead) + 1):
    of_layer = jax.vmap(of_layer)

  def split(x):
    x = x.reshape(*lead, chunks, layers, *x.shape[-2:])
    return [jnp.squeeze(part, -3) for part in jnp.split(x, layers, axis=-3)]

  leaves, structure = jax.tree.flatten(of_layer(jax.tree.map(by_layer, gates)))
  return [structure.unflatten(layer) for layer in zip(*map(split, leaves))]


def _of_layer(gates: Gates) -> Coefficients:
  """Returns a layer's coefficients for a chunk, given its gates [b]."""
  (size,) = gates.keep.shape
  count = blocks_of(size)
  steps = size // count

  def follow(before, token):
    i, *token = token
    own = _own_columns(i, count, 1, size)
    after = before.follow(own, *token)
    return after, after._replace(p=None)

  def enter(before, last):
    return last.after(before), before

  keep, eta, mu = jax.tree.map(lambda x: x.reshape(steps, count, 1), gates[:3])
  zeros, ones = jnp.zeros((count, size), keep.dtype), jnp.ones_like(keep[0])
  start = _Rows(g=zeros, weights=ones)
  if eta is not None:
    start = _Rows(zeros, zeros, ones, ones, zeros[:, :1])
  last, inside = jax.lax.scan(follow, start, (jnp.arange(steps), keep, eta, mu))
  start = jax.tree.map(lambda x: x[0], start)
  end, entering = jax.lax.scan(enter, start, last)
  inside, rate = inside.after(entering), gates.learning_rate

  def rows(x):  # [b / c, c, ...] -> [b, ...]
    return None if x is None else x.reshape(size, -1)

  def row(x):  # [...] -> [1, ...]
    return None if x is None else x[None]

  return Coefficients(
      weights=rows(inside.weights),
      momentum=rows(inside.entered),
      gradients=rows(inside.g) * rate,
      last_weights=row(end.weights),
      last_momentum=row(end.entered),
      last_gradients=row(end.g * rate),
      momentum_kept=row(end.momentum),
      momentum_gradients=None if eta is None else row(end.p * rate),
  )


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
  count = blocks_of(size)
  steps = size // count

  def by_token(x):  # [b, L b] -> of tokens i: [c, L b]
    return [None] * steps if x is None else jnp.split(x, steps)

  tokens = zip(*map(by_token, _over_lanes(layers, dtype, gates[:3])))
  inside = [_Rows()]
  for i, token in enumerate(tokens):
    own = _own_columns(i, count, layers, size)
    inside.append(inside[-1].follow(own, *token))
  last = inside[-1]
  entering, p, m = _entering(last)

  def in_chunk(rows: _Rows):
    rows = rows._replace(p=None).after(entering)
    return rows.weights, rows.entered, rows.g * gates.learning_rate

  weights, momentum, gradients = jax.tree.map(
      _concatenate, *map(in_chunk, inside[1:])
  )
  n = None if p is None else p[-1:] * gates.learning_rate

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
      *map(by_layer, (weights, momentum, gradients)),
      *map(last_by_layer, (*in_chunk(last), m, n)),
  )
  return [
      narrow(Coefficients(*each), width)
      for each, width in zip(of_layers, widths)
  ]


def _entering(last: _Rows) -> tuple[_Rows, Array | None, Array | None]:
  """Returns what enters the blocks, given what holds at their last tokens; and
  P's rows and m there, counted from the chunk's start."""
  weights = _before(_products(last.weights), 1)
  if last.momentum is None:
    g = _before(rule.solve(last.weights, last.g))
    return _Rows(g=g, weights=weights), None, None
  p = rule.solve(last.momentum, last.p)
  m = _products(last.momentum)
  enters_p, momentum = _before(p), _before(m, 1)
  g = last.g + last.entered * enters_p
  entered = _before(rule.solve(last.weights, last.entered * momentum))
  g = _before(rule.solve(last.weights, g))
  return _Rows(enters_p, g, weights, momentum, entered), p, m


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
