# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The dual form's coefficients (`dual`) by kernels of their own.

XLA's loop over tokens goes through main memory at every token. Here a block of
threads has a chunk's columns in registers, one for every token j that is
written, and follows the recurrences from token to token:

    p_t = eta_t p_{t-1} + e_t,    g_t = keep_t g_{t-1} + mu_t p_t,

rows of P and of G but for theta, and beta_t = keep_t beta_{t-1}. All else is read
from these: m and f are their first columns times the first eta. The derivative
goes through the tokens in reverse, with rows that are made again.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from titans_jax.memory import dual
from titans_jax.memory.hopper import tiles

Array = jax.Array

NAME = "memory_coefficients"
NAME_BACKWARD = f"{NAME}_backward"

# Rows of numbers per token.
_KEEP, _ETA, _MU, _BETA, _D_BETA = range(5)


class _Rows(NamedTuple):
  """What the recurrences give, of M chunks.

  Attributes:
    g: [M, b, b], a row per token as arranged.
    beta: [M, b], likewise.
    p: P's row of the last token, [M, b].
  """

  g: Array
  beta: Array
  p: Array


def coefficients(
    gates: dual.Gates, interpret: Any = None
) -> list[dual.Coefficients]:
  """Returns what `dual.coefficients` does, of the rule with momentum.

  Args:
    gates: leaves [..., L, b], [..., 1, b] or [..., 1, L b].
    interpret: `plgpu.InterpretGPUParams`; None: compiled.
  """
  *lead, layers, size = gates.keep.shape
  assert gates.momentum is not None  # `why_not_rule`
  written = gates.written
  if written is None:
    written = jnp.ones((*lead, 1, size), gates.keep.dtype)

  def of_layer(keep, eta, rate) -> dual.Coefficients:
    flat = [
        x.reshape(-1, size).astype(jnp.float32) for x in (keep, eta, written)
    ]
    rows = _recur(interpret, *flat)
    g, beta, p = (x.reshape(*lead, *x.shape[1:]) for x in rows)
    first_eta, rate = eta[..., :1], rate[..., None, :]
    last_beta, last_g, last_p = (
        x[..., None, :] for x in (beta[..., -1:], g[..., -1, :], p)
    )
    return dual.Coefficients(
        weights=beta[..., None],
        momentum=first_eta[..., None] * g[..., :1],
        gradients=g * rate,
        last_weights=last_beta,
        last_momentum=first_eta[..., None] * last_g[..., :1],
        last_gradients=last_g * rate,
        momentum_kept=first_eta[..., None] * last_p[..., :1],
        momentum_gradients=last_p * rate,
    )

  rates = gates.learning_rate.reshape(*lead, layers, size)
  return [
      of_layer(*(x[..., layer, :] for x in (gates.keep, gates.momentum, rates)))
      for layer in range(layers)
  ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recur(interpret, keep: Array, eta: Array, mu: Array) -> _Rows:
  """Follows the recurrences of M chunks, given gates [M, b]."""
  count, size = keep.shape
  wide = (count, tiles.TILE)
  g, beta, p = _launch(
      functools.partial(_forward, size),
      NAME,
      (_by_token(keep, eta, mu),),
      [(count, size, tiles.TILE), wide, wide],
      [],
      interpret,
  )
  return _Rows(*(x[..., :size] for x in (g, beta, p)))


def _recur_fwd(interpret, keep, eta, mu):
  rows = _recur(interpret, keep, eta, mu)
  return rows, (keep, eta, mu, rows.beta)


def _recur_bwd(interpret, saved, d_rows):
  count, size = saved[0].shape
  wide = (count, tiles.TILE)

  def widen(x):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, tiles.TILE - size)])

  d_keep, d_eta = _launch(
      functools.partial(_backward, size),
      NAME_BACKWARD,
      (_by_token(*saved, d_rows.beta), widen(d_rows.g), widen(d_rows.p)),
      [wide, wide],
      [*_buffers(size), tiles.plgpu.Barrier(num_arrivals=2)],
      interpret,
  )
  # mu is whether a token is written.
  return d_keep[:, :size], d_eta[:, :size], jnp.zeros_like(saved[2])


_recur.defvjp(_recur_fwd, _recur_bwd)


def _by_token(*rows: Array) -> Array:
  return jnp.stack(rows, axis=1)


def _launch(kernel, name: str, inputs, results, scratch, interpret):
  """Runs a kernel, a warpgroup for every chunk."""

  def body(*refs):
    kernel(jax.lax.axis_index("chunk"), *refs)

  body.__name__ = name
  return tiles.plgpu.kernel(
      body,
      out_type=[jax.ShapeDtypeStruct(x, jnp.float32) for x in results],
      scratch_types=scratch,
      grid=(len(inputs[0]),),
      grid_names=("chunk",),
      compiler_params=tiles.plgpu.CompilerParams(reduction_scratch_bytes=0),
      **({"interpret": interpret} if interpret else {}),
  )(*inputs)


def _follow(size: int, tokens, fn):
  """Goes through the tokens of a chunk.

  Args:
    size: b.
    tokens: reference to numbers per token, [n, b].
    fn: (place, p, g, new g) -> None; rows [64] of the token before, and of this one.

  Returns:
    The last p, and beta of every token at its place, [64].
  """
  columns = _columns()

  def step(t, carry):
    p, g, beta, betas = carry
    at = _place(size, t)
    keep, eta, mu = (tokens[i, at] for i in (_KEEP, _ETA, _MU))
    own = columns == at
    new_p = jnp.where(own, 1.0, eta * p)
    new_g = keep * g + mu * new_p
    beta = keep * beta
    fn(at, p, g, new_g)
    return new_p, new_g, beta, jnp.where(own, beta, betas)

  zeros = jnp.zeros_like(columns, jnp.float32)
  start = zeros, zeros, jnp.float32(1), zeros
  p, _, _, betas = jax.lax.fori_loop(0, size, step, start)
  return p, betas


def _columns() -> Array:
  layout = tiles.plgpu.Layout.WGMMA.reduce(1)
  return tiles.plgpu.broadcasted_iota(
      jnp.int32, (tiles.TILE,), 0, layout=layout
  )


def _place(size: int, t):
  """Returns the row of token t (`dual.arrange`)."""
  blocks = dual.blocks_of(size)
  steps = size // blocks
  return jax.lax.rem(t, steps) * blocks + jax.lax.div(t, steps)


def _forward(size: int, chunk, tokens, g_out, beta_out, p_out):
  def store(at, p, g, new_g):
    del p, g
    tiles.store(g_out.at[chunk, at], new_g)

  p, betas = _follow(size, tokens.at[chunk], store)
  tiles.store(beta_out.at[chunk], betas)
  tiles.store(p_out.at[chunk], p)


class _Buffers(NamedTuple):
  """Shared memory of the derivative.

  Attributes:
    tokens: numbers per token, [5, b].
    d_g: [b, 64].
    by_keep: rows of G before each token, then what keep's cotangent sums up,
      [64, 64].
    by_eta: likewise of P, and eta's.
  """

  tokens: Any
  d_g: Any
  by_keep: Any
  by_eta: Any


def _buffers(size: int) -> _Buffers:
  buffer = lambda *sizes: tiles.plgpu.SMEM(sizes, jnp.float32)
  square = buffer(tiles.TILE, tiles.TILE)
  return _Buffers(buffer(5, size), buffer(size, tiles.TILE), square, square)


def shared_bytes(size: int) -> int:
  """Returns the shared memory of the derivative's block, for chunks of b."""
  return tiles.shared_bytes(_buffers(size), 1)


def _backward(size: int, chunk, tokens, d_g, d_p, d_keep, d_eta, *scratch):
  """Gives the cotangents of keep and eta."""
  *buffers, came = scratch
  held = _Buffers(*buffers)
  for source, target in ((tokens, held.tokens), (d_g, held.d_g)):
    tiles.plgpu.copy_gmem_to_smem(source.at[chunk], target, came)
  tiles.plgpu.barrier_wait(came)

  # In the layout in which they are read again: every thread reads what it wrote.
  def keep_before(at, p, g, new_g):
    del new_g
    held.by_eta[at], held.by_keep[at] = p, g

  _follow(size, held.tokens, keep_before)
  columns = _columns()
  zeros = jnp.zeros_like(columns, jnp.float32)

  def step(i, carry):
    on_p, on_g, on_beta, through_beta = carry
    t = size - 1 - i
    at, before = _place(size, t), _place(size, jnp.maximum(t - 1, 0))
    keep, eta, mu, d_beta = (
        held.tokens[row, at] for row in (_KEEP, _ETA, _MU, _D_BETA)
    )
    on_g = on_g + held.d_g[at]
    on_p = on_p + mu * on_g
    on_beta = on_beta + d_beta
    beta_before = jnp.where(t > 0, held.tokens[_BETA, before], 1.0)
    # Of the token's own column and later ones p and g before it are zero: that p
    # does not follow from eta there needs no case of its own.
    held.by_keep[at] = on_g * held.by_keep[at]
    held.by_eta[at] = on_p * held.by_eta[at]
    through_beta = jnp.where(columns == at, on_beta * beta_before, through_beta)
    return eta * on_p, keep * on_g, keep * on_beta, through_beta

  start = tiles.load(d_p.at[chunk], 0), zeros, jnp.float32(0), zeros
  *_, through_beta = jax.lax.fori_loop(0, size, step, start)
  tiles.plgpu.commit_smem()
  total = lambda ref: jnp.sum(tiles.load(ref), axis=1)
  tiles.store(d_keep.at[chunk], total(held.by_keep) + through_beta)
  tiles.store(d_eta.at[chunk], total(held.by_eta))
