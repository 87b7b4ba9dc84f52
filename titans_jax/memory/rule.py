# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""From gates to the coefficients of the dual form (v1 equations 13 to 18).

Within a chunk the rule is linear in the tokens' gradients u_j:

    S_t = m_t S_0 - sum_{j<=t} N[t,j] u_j
    W_t = beta_t W_0 + f_t S_0 - sum_{j<=t} G[t,j] u_j

with, Z being the shift by one row and mu_t = 1 for a written token,

    N = (I - diag(eta) Z)^-1 diag(theta)       m = cumulative product of eta
    G = (I - diag(1 - alpha) Z)^-1 diag(mu) N  beta = the same of 1 - alpha
    f = (I - diag(1 - alpha) Z)^-1 (mu * m)

Both systems are unit bidiagonal. `coefficients` follows the recurrences row by
row, which is least work; `solve` doubles, which is fewest steps. Neither needs
logarithms or divisions: both are exact also for alpha = 1 and eta = 0.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class ChunkGates(NamedTuple):
  """Gates of one memory layer over one chunk.

  Attributes:
    forget: alpha [b, 1], or [b, d_out] when every output channel forgets at its
      own rate.
    learning_rate: theta [b].
    momentum: eta [b], or None for the rule without momentum.
  """

  forget: Array
  learning_rate: Array
  momentum: Array | None


class Coefficients(NamedTuple):
  """Coefficients of the dual form. c is 1, or d_out with forgetting per channel.

  Attributes:
    weights: beta, the share of W_0: [b, c], or [c] for one token.
    momentum: f, the share of S_0, shaped like `weights`; None without momentum.
    gradients: G, the shares of the gradients: [b, b, c], or [b, c].
  """

  weights: Array
  momentum: Array | None
  gradients: Array


class LastMomentum(NamedTuple):
  """Coefficients of S after a chunk's last token: m [] and N's last row [b]."""

  momentum: Array
  gradients: Array


def shift(x: Array, steps: int, fill: float = 0) -> Array:
  """Moves rows down by `steps` (up where negative), filling behind them."""
  rows = min(abs(steps), x.shape[0])
  gap = jnp.full((rows, *x.shape[1:]), fill, x.dtype)
  if rows == x.shape[0]:  # A TPU kernel has no empty arrays to append.
    return gap
  return jnp.concatenate([gap, x[:-steps]] if steps > 0 else [x[-steps:], gap])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def solve(decay: Array, x: Array, transpose: bool = False) -> Array:
  """Returns (I - diag(decay) Z)^-1 x: y_t = x_t + decay_t y_{t-1} over axis 0.

  Args:
    decay: [b, ...], broadcastable against x.
    x: [b, ...].
    transpose: solves the transposed system, y_t = x_t + decay_{t+1} y_{t+1}.
  """
  direction = -1 if transpose else 1
  if transpose:
    decay = shift(decay, -1)
  size, step = x.shape[0], 1
  while step < size:
    x = x + decay * shift(x, direction * step)
    step *= 2
    if step < size:
      decay = decay * shift(decay, direction * (step // 2))
  return x


def _solve_fwd(decay, x, transpose):
  y = solve(decay, x, transpose)
  return y, (decay, y)


def _solve_bwd(transpose, residuals, g):
  # The gradient of a bidiagonal solve is the transposed solve: nothing of the
  # log2(b) steps in between is kept.
  decay, y = residuals
  dx = solve(decay, g, not transpose)
  if transpose:
    d_decay = shift(dx, 1) * y
  else:
    d_decay = dx * shift(y, 1)
  axes = tuple(
      axis
      for axis in range(1, y.ndim)
      if decay.shape[axis] == 1 and y.shape[axis] > 1
  )
  return jnp.sum(d_decay, axis=axes, keepdims=True), dx


solve.defvjp(_solve_fwd, _solve_bwd)


def _mask(gates: ChunkGates, written: Array):
  """Returns (1 - alpha, theta, eta), neutral where no token is written."""
  keep = jnp.where(written[:, None], 1 - gates.forget, 1)
  rate = jnp.where(written, gates.learning_rate, 0)
  if gates.momentum is None:
    return keep, rate, None
  return keep, rate, jnp.where(written, gates.momentum, 1)


def coefficients(
    gates: ChunkGates, written: Array
) -> tuple[Coefficients, LastMomentum | None]:
  """Returns the dual form's coefficients for every token of a chunk.

  Args:
    gates: of one memory layer, over b tokens.
    written: bool [b], mu.

  Returns:
    Coefficients over [b] tokens, and those of S after the last token (None
    without momentum).
  """
  keep, rate, eta = _mask(gates, written)
  size, channels = keep.shape
  zeros = jnp.zeros((size + 1, 1), rate.dtype)
  # Column j < b belongs to u_j, the last one to S_0, of which S starts as 1.
  start_s = zeros.at[size].set(1)
  start = (start_s, zeros * keep[:1], jnp.ones(channels, keep.dtype))

  def follow(rows, token):
    """The shares of all u_j, W_0 and S_0 in S_t and W_t, from those before."""
    s, w, beta = rows
    t, keep, rate, eta, written = token
    own = (jnp.arange(size + 1) == t)[:, None]
    s = jnp.where(own, rate, 0 if eta is None else eta * s)
    w = keep * w + jnp.where(written, s, 0)
    return (s, w, keep * beta), (w, keep * beta)

  tokens = (jnp.arange(size), keep, rate, eta, written)
  (s, *_), (w, beta) = jax.lax.scan(follow, start, tokens)
  return (
      Coefficients(
          weights=beta,
          momentum=None if eta is None else w[:, size],
          gradients=w[:, :size],
      ),
      None if eta is None else LastMomentum(s[size, 0], s[:size, 0]),
  )


def last_coefficients(
    gates: ChunkGates, written: Array
) -> tuple[Coefficients, LastMomentum | None]:
  """Returns the last row of `coefficients` in O(b log b), not O(b^2)."""
  keep, rate, eta = _mask(gates, written)
  size = rate.shape[0]
  first = (jnp.arange(size) == 0).astype(rate.dtype)
  last = (jnp.arange(size) == size - 1).astype(rate.dtype)
  beta = solve(keep, first[:, None] * keep)[-1]
  # Row t of A^-1 is A^-T applied to the unit vector t.
  row = solve(keep, jnp.broadcast_to(last[:, None], keep.shape), True)
  row = jnp.where(written[:, None], row, 0)
  if eta is None:
    return Coefficients(beta, None, rate[:, None] * row), None
  m = solve(eta, first * eta)
  return (
      Coefficients(
          weights=beta,
          momentum=jnp.sum(row * m[:, None], axis=0),
          gradients=rate[:, None] * solve(eta[:, None], row, True),
      ),
      LastMomentum(m[-1], rate * solve(eta, last, True)),
  )
