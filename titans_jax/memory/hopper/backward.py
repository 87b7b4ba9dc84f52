# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The kernel that takes the state's cotangent through chunks, in reverse.

Of a chunk's derivative one thing has to wait for the chunks behind it: the
cotangent (P, R) of the state (W, S) that it leaves. With the weights before every
chunk at hand everything else is made for many chunks at once by XLA
(`chunkwise`): the coefficients of what is linear in (P, R) here (`prepare`), and
what a chunk's own reads add. The update of each layer is

    W' = beta W + f S - A^T diag(g) Delta,    S' = m S - A^T diag(n) Delta

(of the first, A is K), so (P, R) behind a chunk become before it

    P_1' = beta P_1 + dZ K,                   R_1' = f P_1 + m R_1
    P_2' = beta P_2 + A dF + dU Delta_2,      R_2' = f P_2 + m R_2

where, transposed as in the forward kernel, hidden units by tokens, and with
U = W_2 Delta_2^T, F = f(k) and Delta_1^T = U * gelu'(Z),

    dDelta_1 = -(P_1 K^T) diag(g_1) - (R_1 K^T) diag(n_1)
    dU       = dDelta_1 * gelu'(Z)
    dDelta_2 = -diag(g_2) A^T P_2 - diag(n_2) A^T R_2 + dU^T W_2
    dF       = what LN, and the loss's gradient through it, make of dDelta_2
    dA       = -(P_2 Delta_2^T) diag(g_2) - (R_2 Delta_2^T) diag(n_2) + W_2 dF^T
    dZ       = dA * gelu'(Z) + dDelta_1 * U * gelu''(Z).

To P', R', dDelta_1, dDelta_2 and dA comes what the chunk's own reads add. Besides P
and R, dZ and dDelta_2 come out, from which XLA makes the rest. Where a document starts
behind a chunk, (P, R) are of what that starts from, and the chunk's coefficients zero.

P is held as W is, R as S.

With a bound c on |a| |delta|, delta' = s delta is read and learned in delta's place,
and where s = c / (|a| |delta|) is below one

    d delta = y - delta <delta, y> / |delta|^2,         y = s d delta',
    d a     = -<delta, y> a / |a|^2                     in addition.

So the rows of g and n have s in them, and what the reads add to d delta' too. Of the
second layer all that is of whole rows; of the first <delta, y> is <delta_2, V> with
V = (y * gelu'(Z))^T W_2, which the first warpgroup has in any case: dU is corrected
after it, from y, which waits in dZ's place.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from titans_jax.memory import networks
from titans_jax.memory.hopper import block
from titans_jax.memory.hopper import chunkwise
from titans_jax.memory.hopper import shapes
from titans_jax.memory.hopper import tiles

Array = jax.Array

NAME = "fused_memory_scan_backward"

# Rows of the numbers per token of a chunk, in `Chunks.tokens`: -g and -n of both
# layers, one over the deviation of f(k), and that times mean(LN(f(k)) v). With a
# bound, where it acts: s / |delta_1'|^2, 1 / |delta_2|^2, 1 / |a|^2 of the second
# layer. The kernel overwrites the first and the last of these with the factors of
# delta_1' and of a.
_G_2, _N_2, _G_1, _N_1, _SCALE, _ALONG, _DELTA_1, _DELTA_2, _ACTS = range(9)


class Bounded(NamedTuple):
  """What is read for the sake of a bound.

  Attributes:
    delta_1: delta_1', [I, N, hidden / 64, 64, b].
    back: (delta_1' * gelu'(Z))^T W_2, [I, N, 64, D].
  """

  delta_1: Array
  back: Array


class Chunks(NamedTuple):
  """What the kernel reads, of I instances and N chunks.

  Attributes:
    keys: [I, N, b, D].
    deltas: delta_2, [I, N, b, D].
    weights: W_2, [I, N, hidden / 64, 64, D].
    acts: gelu(Z), [I, N, hidden / 64, 64, b].
    slopes: gelu'(Z), likewise.
    bends: U * gelu''(Z), likewise.
    normal: LN(f(k)), [I, N, 64, D].
    direct: what the chunk's own reads add to the cotangents of W and S before it,
      leaves [I, N, hidden / 64, 64, D].
    d_acts: what they add to that of gelu(Z), [I, N, hidden / 64, 64, b].
    d_delta_1: to that of Delta_1, likewise; with a bound s times to that of
      Delta_1'.
    d_deltas: to that of delta_2, [I, N, 64, D], likewise.
    tokens: float32 [I, N, 8 or 16, 64], a coefficient per row, a token per column.
    ends: float32 [I, N, 6], last beta, f and m of each layer.
    gain: float32 [I, D].
    zero: int32 [1].
    bounded: None without a bound.
  """

  keys: Array
  deltas: Array
  weights: Array
  acts: Array
  slopes: Array
  bends: Array
  normal: Array
  direct: tuple[tuple[Array, Array], tuple[Array, Array]]
  d_acts: Array
  d_delta_1: Array
  d_deltas: Array
  tokens: Array
  ends: Array
  gain: Array
  zero: Array
  bounded: Bounded | None


def _kernel(shape: shapes.Shape, interpreted: bool, inputs, results, scratch):
  """What a warpgroup does for one head."""
  last, chunks = inputs
  first, after, d_z, d_deltas_out, on_delta_1_out = results
  bounded = chunks.bounded
  buffers, barriers = scratch
  (weights, momentum), layer_2, acts = (
      buffers.state,
      buffers.layer_2,
      buffers.acts,
  )
  keys, deltas, back = buffers.keys, buffers.deltas, buffers.back
  tokens, chunk_came = buffers.tokens, barriers.chunk_came
  size, width, dtype = shape.chunk, shape.width, shape.dtype
  head = block.Block(shape, buffers.state, barriers.everyone, chunks.zero)
  instance, own, zero = head.instance, head.own, head.zero
  all_tiles = range(shape.tiles)
  product = tiles.Products(interpreted)

  # Which of an address's parts the compiler may not know decides what it spills:
  # found by trying, with one tile a warpgroup and with two.
  two = shape.tiles_per_group > 1

  def here(n):
    return (instance + zero(), n) if two else (instance, n + zero())

  def fetch(n):
    copy = functools.partial(tiles.plgpu.copy_gmem_to_smem, barrier=chunk_came)
    copy(chunks.keys.at[instance, n], keys.at[0, :size])
    copy(chunks.deltas.at[instance, n], deltas.at[0, :size])
    copy(chunks.tokens.at[instance, n], tokens)
    for t in all_tiles:
      copy(chunks.weights.at[instance, n, t], layer_2.at[t])

  def of_tokens(row):
    return tiles.per_column(tokens[row, :size])

  def over_tokens(matrices, t, rows, factors):
    """Returns the sum of products with rows^T, each's columns times a factor."""
    z0 = zero()
    found = [
        of_tokens(row)
        * product(matrix.at[t + z0], tiles.turned(rows.at[z0, :size]))
        for matrix, row in zip(matrices, factors)
    ]
    return found[0] + found[1]

  def over_units(left, right):
    """Returns the sum over all hidden units of left^T right, [64, D]."""
    z0 = zero()
    return product.sum(
        [tiles.turned(left.at[t + z0]) for t in all_tiles],
        [right.at[t + z0] for t in all_tiles],
    )

  def added(x, more):
    return tiles.columns(lambda x, y: x + y.astype(jnp.float32), x, more)

  def times(x, y):
    return x * y.astype(jnp.float32)

  def inner(x, y):
    """Returns the inner products of rows, [64]."""
    return jnp.sum(tiles.columns(times, x, y), axis=1)

  def less(x, factors, y):
    """Returns x less rows of y, each times a factor."""

    def strip(x, y):
      return x - tiles.per_row(factors, x.shape[1]) * y.astype(jnp.float32)

    return tiles.columns(strip, x, y)

  def through_gelu(x, slope):
    return times(x, slope).astype(dtype)

  def correct(n, t):
    """Makes dDelta_1 of y, and dU of that; returns dDelta_1 * bends."""
    delta = tiles.columns(
        lambda y, factor, delta: (
            y.astype(jnp.float32) - factor * delta.astype(jnp.float32)
        ),
        d_z.at[*here(n), t],
        of_tokens(_DELTA_1),
        bounded.delta_1.at[*here(n), t],
    )
    acts[t + zero(), :, :size] = tiles.columns(
        through_gelu, delta, chunks.slopes.at[*here(n), t]
    )
    (bend,) = tiles.packed(
        tiles.columns(through_gelu, delta, chunks.bends.at[*here(n), t])
    )
    tiles.plgpu.commit_smem()  # Of dU comes a product.
    return bend

  def update(layer, i, n, rests, change):
    """Writes a tile's next P and R, given P's change; returns P's rests."""
    beta, f, m = (
        chunks.ends[instance + zero(), n, 3 * layer + k] for k in range(3)
    )
    w, s = weights[layer], momentum[layer]
    t, place = own[i] + (0 if two else zero()), head.place(i, layer)

    def new(w, rests, s, change, more_w, more_s):
      whole = tiles.whole(w, rests, place)
      s = f * whole + m * s.astype(jnp.float32) + more_s.astype(jnp.float32)
      whole = beta * whole + change + more_w.astype(jnp.float32)
      rounded = whole.astype(dtype)
      rests = tiles.with_rest(rests, place, whole, rounded)
      return rounded, rests, s.astype(dtype)

    rounded, rests, s[t] = tiles.columns(
        new,
        w[t],
        rests,
        s[t],
        change,
        *(x[layer].at[*here(n), t] for x in chunks.direct),
    )
    w[t], rests = tiles.packed(rounded, rests)
    return rests

  head.leads(lambda: fetch(shape.chunks - 1))
  rests = head.fetch_state(last, barriers.state_came)

  def step(i, rests):
    n = shape.chunks - 1 - i
    for t in own:
      acts[t + zero(), :, :size] = tiles.load(chunks.acts.at[*here(n), t])
    tiles.plgpu.barrier_wait(chunk_came)
    head.sync()

    @head.leads
    def _():
      # A^T P_2 and A^T R_2, before what is learned of A takes its place.
      head.store_rounded(after, (instance, n), zero())
      of_layer = []
      for row, right in ((_G_2, weights[1]), (_N_2, momentum[1])):
        of_layer.append(
            tiles.per_row(tokens[row], width) * over_units(acts, right)
        )
      d_deltas = of_layer[0] + of_layer[1]
      if bounded is not None:
        d_deltas = added(d_deltas, chunks.d_deltas.at[*here(n)])
        on_delta = inner(d_deltas, deltas[zero()])
        d_deltas = less(d_deltas, on_delta * tokens[_DELTA_2], deltas[zero()])
        tokens[_ACTS] = on_delta * tokens[_ACTS]
      back[zero()] = d_deltas.astype(dtype)

    head.sync()

    bends = []
    for t in own:
      x = over_tokens((weights[0], momentum[0]), t, keys, (_G_1, _N_1))
      x = added(x, chunks.d_delta_1.at[*here(n), t])  # dDelta_1, or y
      if bounded is None:
        (bend,) = tiles.packed(
            tiles.columns(
                through_gelu, x, tiles.load(chunks.bends.at[*here(n), t])
            )
        )
        bends.append(bend)
      else:
        # y waits in main memory for the factor of delta_1'.
        tiles.store(d_z.at[*here(n), t], x.astype(dtype))
      acts[t + zero(), :, :size] = tiles.columns(
          through_gelu, x, chunks.slopes.at[*here(n), t]
      )
    head.sync()

    @head.leads
    def _():
      # dDelta_2 and dF, as the derivative of `networks.layer_norm_back` has it.
      d_deltas = over_units(acts, layer_2)
      if bounded is not None:
        on_delta_1 = inner(d_deltas, deltas[zero()])
        on_delta_1_out[*here(n)] = on_delta_1
        factor = on_delta_1 * tokens[_DELTA_1]
        tokens[_DELTA_1] = factor
        d_deltas = less(d_deltas, factor, bounded.back.at[*here(n)])
      d_deltas = back[zero()].astype(jnp.float32) + d_deltas
      if bounded is None:
        d_deltas = added(d_deltas, chunks.d_deltas.at[*here(n)])
      tiles.store(d_deltas_out.at[*here(n)], d_deltas.astype(dtype))
      y = chunks.normal.at[*here(n)]
      gain = tiles.load(chunks.gain.at[instance + zero()], 1)
      scale = tokens[_SCALE]
      mean = lambda x: jnp.sum(x, axis=1) * (1 / width)

      def rows(x, like):
        return tiles.per_row(x, like.shape[1])

      def across(x, y, mean_x, along):
        y = y.astype(jnp.float32)
        return x - rows(mean_x, x) - y * rows(along, x)

      along = inner(d_deltas, y) * (1 / width)
      mean_d = mean(d_deltas)
      h = tiles.columns(lambda x, y: across(x, y, mean_d, along), d_deltas, y)
      # scale mean(h v) = mean(h delta) + scale mean(y v) mean(y d_deltas) (1 -
      # mean(y^2)), of which the last is epsilon scale^2.
      left = along * (networks.NORM_EPSILON * scale * scale)
      on_delta = inner(h, deltas[zero()]) * (1 / width) + tokens[_ALONG] * left
      gains = tiles.per_column(gain)

      def through_loss(h, gain):
        return (2 * gain * gain) * h * rows(scale, h)

      mean_there = mean(tiles.columns(through_loss, h, gains))
      there_along = mean(
          tiles.columns(
              lambda h, gain, y: times(through_loss(h, gain), y), h, gains, y
          )
      )

      def df(h, gain, y, delta):
        there = across(through_loss(h, gain), y, mean_there, there_along)
        y, delta = y.astype(jnp.float32), delta.astype(jnp.float32)
        there -= y * rows(on_delta, y) + h * rows(tokens[_ALONG], h)
        there -= delta * rows(along, delta)
        return (there * rows(scale, there)).astype(dtype)

      back[zero()] = tiles.columns(df, h, gains, y, deltas[zero()])
      tiles.plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    head.sync()

    for i, t in enumerate(own):
      bend = bends[i] if bounded is None else correct(n, t)
      x = over_tokens((weights[1], momentum[1]), t, deltas, (_G_2, _N_2))
      z0 = zero()
      x += product(layer_2.at[t + z0], tiles.turned(back.at[z0, :size]))  # dA
      x = added(x, chunks.d_acts.at[*here(n), t])
      if bounded is not None:
        x = tiles.columns(
            lambda x, factor, act: x - factor * act.astype(jnp.float32),
            x,
            of_tokens(_ACTS),
            chunks.acts.at[*here(n), t],
        )
      (dz,) = tiles.packed(
          tiles.columns(
              lambda x, slope, bend: (
                  x * slope.astype(jnp.float32) + bend.astype(jnp.float32)
              ).astype(dtype),
              x,
              chunks.slopes.at[*here(n), t],
              bend,
          )
      )
      tiles.store(d_z.at[*here(n), t], dz)
      rests = update(0, i, n, rests, product(dz, keys.at[zero(), :size]))
      z0 = zero()
      change = product.sum(
          [
              tiles.load(chunks.acts.at[*here(n), t]),
              acts.at[t + z0, :, :size],
          ],
          [back.at[z0, :size], deltas.at[z0, :size]],
      )
      rests = update(1, i, n, rests, change)
    head.sync()
    pl.when(head.is_leader & (n > 0))(lambda: fetch(n - 1))
    return rests

  rests = jax.lax.fori_loop(0, shape.chunks, step, rests)
  head.store(first, (instance,), rests, (acts, layer_2), zero())
  tiles.plgpu.wait_smem_to_gmem(0)


class _Buffers(NamedTuple):
  """Shared memory.

  Attributes:
    state: P of both layers, and R.
    layer_2: W_2.
    acts: A, then dU (with a bound before that y * gelu'(Z)).
    keys: of a chunk.
    deltas: delta_2.
    back: what is known of dDelta_2, then dF.
    tokens: as in `Chunks`, with what the kernel makes of a bound's rows.
  """

  state: Any
  layer_2: Any
  acts: Any
  keys: Any
  deltas: Any
  back: Any
  tokens: Any


class _Barriers(NamedTuple):
  """What is waited for.

  Attributes:
    chunk_came: `fetch` has done its copies.
    state_came: the state is there.
    everyone: all warpgroups have arrived.
  """

  chunk_came: Any
  state_came: Any
  everyone: Any


def _buffers(shape: shapes.Shape) -> _Buffers:
  buffer = functools.partial(shapes.buffer, shape)
  layer = buffer(shape.tiles, tiles.TILE, shape.width)
  tokens = buffer(1, tiles.TILE, shape.width)
  return _Buffers(
      state=((layer, layer), (layer, layer)),
      layer_2=layer,
      acts=buffer(shape.tiles, tiles.TILE, tiles.TILE),
      keys=tokens,
      deltas=tokens,
      back=tokens,
      tokens=tiles.plgpu.SMEM(
          (8 if shape.max_grad_norm is None else 16, tiles.TILE), jnp.float32
      ),
  )


def shared_bytes(shape: shapes.Shape) -> int:
  """Returns the shared memory of a block."""
  return tiles.shared_bytes(_buffers(shape), len(_Barriers._fields))


def run(shape: shapes.Shape, last: shapes.State, chunks: Chunks, interpret):
  """Returns the cotangents of all that waits for the chunks behind.

  Args:
    shape: sizes.
    last: cotangent of the last state.
    chunks: from `prepare`.
    interpret: `plgpu.InterpretGPUParams`; None: compiled.

  Returns:
    Those of the first state; of the states behind every chunk, leaves [I, N, ...]
    and without a rest, also where a document starts there; of Z, [I, N, hidden,
    b]; of Delta_2, float32 [I, N, b, D]; and <delta, y> of the first layer, float32
    [I, N, b], or None without a bound.
  """
  lead = (shape.instances,)
  barrier = tiles.plgpu.Barrier
  barriers = _Barriers(
      chunk_came=barrier(num_arrivals=3 + shape.tiles),
      state_came=barrier(num_arrivals=4 * shape.tiles),
      everyone=barrier(num_arrivals=shape.warpgroups),
  )
  on_delta_1 = None
  if shape.max_grad_norm is not None:
    row = *lead, shape.chunks, tiles.TILE
    on_delta_1 = jax.ShapeDtypeStruct(row, jnp.float32)
  first, after, d_z, d_deltas, on_delta_1 = block.launch(
      _kernel,
      NAME,
      shape,
      (last, chunks),
      (
          shapes.state_type(shape, (tiles.TILE, shape.width), *lead),
          shapes.state_type(shape, (), *lead, shape.chunks),
          shapes.tile_type(shape, shape.chunk, *lead, shape.chunks),
          jax.ShapeDtypeStruct(
              (*lead, shape.chunks, tiles.TILE, shape.width), shape.dtype
          ),
          on_delta_1,
      ),
      (_buffers(shape), barriers),
      interpret,
  )
  return (
      shapes.narrow(shape.width, first),
      after,
      d_z.reshape(*d_z.shape[:2], shape.hidden, shape.chunk),
      d_deltas[:, :, : shape.chunk].astype(jnp.float32),
      None if on_delta_1 is None else on_delta_1[:, :, : shape.chunk],
  )


def prepare(
    shape: shapes.Shape,
    own: chunkwise.Chunk,
    before: chunkwise.Matrices,
    learned: chunkwise.Learned,
    direct: chunkwise.Matrices,
    d_seen: chunkwise.Seen,
) -> Chunks:
  """Lays out all that does not depend on the chunks behind.

  Args:
    shape: sizes.
    own: the chunks, with coefficients of zero where a document starts behind.
    before: the states before them.
    learned: from these.
    direct: cotangents of the states by the chunks' own reads.
    d_seen: likewise, of A and Delta.
  """
  first, second = own.gates

  def in_tiles(x):
    return x.reshape(*x.shape[:2], shape.tiles, tiles.TILE, x.shape[-1])

  def whole_tile(x):
    padding = [(0, 0), (0, 0), (0, tiles.TILE - shape.chunk), (0, 0)]
    return jnp.pad(x, padding).astype(shape.dtype)

  y, scale = networks.normalize(learned.f)
  along = networks.row_mean(y * chunkwise.by_norm(y, own))
  by_row = {
      _G_2: -second.last_gradients,
      _N_2: -second.momentum_gradients,
      _G_1: -first.last_gradients,
      _N_1: -first.momentum_gradients,
      _SCALE: scale,
      _ALONG: scale * along,
  }
  by_row = {row: x.reshape(own.keys.shape[:3]) for row, x in by_row.items()}
  d_delta_1, d_delta_2, bounded = d_seen.delta_1, d_seen.delta_2, None
  if learned.bounds is not None:
    scales, over_inputs, over_deltas = learned.bounds
    for row, of in ((_G_1, 0), (_N_1, 0), (_G_2, 1), (_N_2, 1)):
      by_row[row] *= scales[of]
    d_delta_1 = (scales[0][..., None, :] * d_delta_1).astype(shape.dtype)
    d_delta_2 *= scales[1][..., None]
    by_row[_DELTA_1] = scales[0] * over_deltas[0]
    by_row[_DELTA_2] = scales[1] ** 2 * over_deltas[1]
    by_row[_ACTS] = over_inputs[1]
    back = learned.seen.delta_1 * learned.slopes
    bounded = Bounded(
        delta_1=in_tiles(learned.seen.delta_1),
        back=whole_tile(chunkwise.over_units(shape, back, before.w2)),
    )
  return Chunks(
      keys=own.keys.astype(shape.dtype),
      deltas=learned.delta_2.astype(shape.dtype),
      weights=in_tiles(before.w2),
      acts=in_tiles(learned.seen.acts),
      slopes=in_tiles(learned.slopes),
      bends=in_tiles(learned.bends),
      normal=whole_tile(y),
      direct=(
          (in_tiles(direct.w1), in_tiles(direct.w2)),
          (in_tiles(direct.s1), in_tiles(direct.s2)),
      ),
      d_acts=in_tiles(d_seen.acts),
      d_delta_1=in_tiles(d_delta_1),
      d_deltas=whole_tile(d_delta_2),
      tokens=shapes.rows_of_tokens(
          shape, [by_row[row] for row in range(len(by_row))]
      ),
      ends=shapes.ends(shape, own.gates),
      gain=own.gain[:, 0, 0],
      zero=jnp.zeros(1, jnp.int32),
      bounded=bounded,
  )
