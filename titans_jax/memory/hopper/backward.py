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

A cluster of blocks adds up what its hidden units make of dDelta_2, with a bound the
part through dU apart.
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
# bound, where it acts: s / |delta_1'|^2, 1 / |a|^2 of the second layer, and
# 1 / |delta_2|^2. The kernel overwrites the first two of these with the factors of
# delta_1' and of a; the last, read once, does not come to shared memory, which is
# full.
_G_2, _N_2, _G_1, _N_1, _SCALE, _ALONG, _DELTA_1, _ACTS, _DELTA_2 = range(9)


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
    tokens: float32 [I, N, 6 or 9, 64], a coefficient per row, a token per column.
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
  first, after, d_z, d_deltas_out, on_delta_1_out, shared = results
  bounded = chunks.bounded
  buffers, barriers = scratch
  (weights, momentum), layer_2, acts = (
      buffers.state,
      buffers.layer_2,
      buffers.acts,
  )
  keys, deltas, back = buffers.keys, buffers.deltas, buffers.back
  tokens, chunk_came = buffers.tokens, barriers.chunk_came
  size, dtype, panels = shape.chunk, shape.dtype, shape.columns()
  head = block.Block(
      shape, interpreted, buffers.state, barriers.meeting, chunks.zero
  )
  instance, own, zero = head.instance, head.own, head.zero
  all_tiles = range(shape.tiles_per_block)
  product = tiles.Products(interpreted)

  # Which of an address's parts the compiler may not know decides what it spills:
  # found by trying, with one tile a warpgroup, with two, and with two panels.
  two, wide = shape.tiles_per_group > 1, shape.panels > 1
  head_known, chunk_known = not (two or wide or bounded), two

  def here(n):
    return (
        instance if head_known else instance + zero(),
        n if chunk_known else n + zero(),
    )

  def there(n, t):
    return *here(n), head.place_of(t)

  def fetch(n):
    copy = functools.partial(tiles.plgpu.copy_gmem_to_smem, barrier=chunk_came)
    copy(chunks.keys.at[instance, n], keys.at[0, :size])
    copy(chunks.deltas.at[instance, n], deltas.at[0, :size])
    copy(chunks.tokens.at[instance, n, : _rows(shape)], tokens)
    for t in all_tiles:
      copy(chunks.weights.at[instance, n, head.place_of(t)], layer_2.at[t])

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

  def over_units(left, right, columns):
    """Returns the sum over the block's hidden units of left^T right, columns of
    [64, D]."""
    z0 = zero()
    return product.sum(
        [tiles.turned(left.at[t + z0]) for t in all_tiles],
        [right.at[t + z0, :, columns] for t in all_tiles],
    )

  def by_panel(fn, *rows):
    """Applies fn to panels, of lists of them and of references to rows."""

    def part(x, panel):
      return x[panel] if isinstance(x, list) else x.at[:, panels[panel]]

    return [
        tiles.columns(fn, *(part(x, panel) for x in rows))
        for panel in range(shape.panels)
    ]

  def of_panels(ref):
    """Returns the panels of a buffer of rows."""
    return [ref[zero(), :, columns] for columns in panels]

  def added(x, more):
    return tiles.columns(plus, x, more)

  def plus(x, y):
    return x + y.astype(jnp.float32)

  def times(x, y):
    return x * y.astype(jnp.float32)

  def inner(x, y):
    """Returns the inner products of rows over their width, [64]."""
    return tiles.row_mean(by_panel(times, x, y))

  def less(x, factors, y):
    """Returns x less rows of y, each times a factor."""
    return x - tiles.per_row(factors, x.shape[1]) * y.astype(jnp.float32)

  def through_gelu(x, slope):
    return times(x, slope).astype(dtype)

  def correct(n, t):
    """Makes dDelta_1 of y, and dU of that; returns dDelta_1 * bends."""
    delta = tiles.columns(
        lambda y, factor, delta: (
            y.astype(jnp.float32) - factor * delta.astype(jnp.float32)
        ),
        d_z.at[*there(n, t)],
        of_tokens(_DELTA_1),
        bounded.delta_1.at[*there(n, t)],
    )
    acts[t + zero(), :, :size] = tiles.columns(
        through_gelu, delta, chunks.slopes.at[*there(n, t)]
    )
    (bend,) = tiles.packed(
        tiles.columns(through_gelu, delta, chunks.bends.at[*there(n, t)])
    )
    tiles.plgpu.commit_smem()  # Of dU comes a product.
    return bend

  def update(layer, i, n, rests, changes):
    """Writes a tile's next P and R, given the change of P's columns; returns P's
    rests."""
    beta, f, m = (
        chunks.ends[instance + zero(), n, 3 * layer + k] for k in range(3)
    )
    w, s = weights[layer], momentum[layer]
    t = own[i] + (0 if two else zero())
    for panel, columns in enumerate(panels):
      place = head.place(i, layer, panel)

      def new(w, rests, s, change, more_w, more_s, place=place):
        whole = tiles.whole(w, rests, place)
        s = f * whole + m * s.astype(jnp.float32) + more_s.astype(jnp.float32)
        whole = beta * whole + change + more_w.astype(jnp.float32)
        rounded = whole.astype(dtype)
        rests = tiles.with_rest(rests, place, whole, rounded)
        return rounded, rests, s.astype(dtype)

      change = changes(columns)
      rounded, rests, s[t, :, columns] = tiles.columns(
          new,
          w[t, :, columns],
          rests,
          s[t, :, columns],
          change,
          *(x[layer].at[*there(n, t), :, columns] for x in chunks.direct),
      )
      w[t, :, columns], rests = tiles.packed(rounded, rests)
    return rests

  head.leads(lambda: fetch(shape.chunks - 1))
  rests = head.fetch_state(last, barriers.state_came)

  def step(i, rests):
    n = shape.chunks - 1 - i
    for t in own:
      acts[t + zero(), :, :size] = tiles.load(chunks.acts.at[*there(n, t)])
    tiles.plgpu.barrier_wait(chunk_came)
    head.sync()

    @head.leads
    def _():
      # A^T P_2 and A^T R_2, before what is learned of A takes its place.
      head.store_rounded(after, (instance, n), zero())
      for columns in panels:
        of_layer = [
            tiles.per_row(tokens[row], shape.panel)
            * over_units(acts, right, columns)
            for row, right in ((_G_2, weights[1]), (_N_2, momentum[1]))
        ]
        back[zero(), :, columns] = (of_layer[0] + of_layer[1]).astype(dtype)

    head.sync()

    bends = []
    for t in own:
      x = over_tokens((weights[0], momentum[0]), t, keys, (_G_1, _N_1))
      x = added(x, chunks.d_delta_1.at[*there(n, t)])  # dDelta_1, or y
      if bounded is None:
        (bend,) = tiles.packed(
            tiles.columns(
                through_gelu, x, tiles.load(chunks.bends.at[*there(n, t)])
            )
        )
        # It waits in registers or, if these are few, in main memory.
        if wide:
          tiles.store(d_z.at[*there(n, t)], bend)
        else:
          bends.append(bend)
      else:
        # y waits there for the factor of delta_1'.
        tiles.store(d_z.at[*there(n, t)], x.astype(dtype))
      acts[t + zero(), :, :size] = tiles.columns(
          through_gelu, x, chunks.slopes.at[*there(n, t)]
      )
    head.sync()

    @head.leads
    def _():
      # dDelta_2 and dF, as the derivative of `networks.layer_norm_back` has it.
      by_units = [
          functools.partial(over_units, acts, layer_2, columns)
          for columns in panels
      ]
      known = [
          lambda columns=columns: back[zero(), :, columns].astype(jnp.float32)
          for columns in panels
      ]
      delta_2 = functools.partial(of_panels, deltas)
      if bounded is None:
        of_both = [lambda x=x, y=y: y() + x() for x, y in zip(known, by_units)]
        d_deltas = head.total(shared, i, of_both)
        head.apart()
        d_deltas = by_panel(plus, d_deltas, chunks.d_deltas.at[*here(n)])
        head.apart()
      else:
        found = head.total(shared, i, known + by_units)
        known, by_units = found[: shape.panels], found[shape.panels :]
        more, over = chunks.d_deltas.at[*here(n)], bounded.back.at[*here(n)]
        on_delta_1 = shape.width * inner(by_units, delta_2())
        factor = on_delta_1 * tokens[_DELTA_1]
        tokens[_DELTA_1] = factor
        head.apart()
        on_delta = shape.width * tiles.row_mean(
            by_panel(
                lambda x, more, delta: times(plus(x, more), delta),
                known,
                more,
                delta_2(),
            )
        )
        tokens[_ACTS] = on_delta * tokens[_ACTS]
        on_delta *= tiles.load(chunks.tokens.at[*here(n), _DELTA_2], 0)
        head.apart()

        def bound(x, more, delta, units, over):
          x = less(plus(x, more), on_delta, delta)
          return x + less(units, factor, over)

        d_deltas = by_panel(bound, known, more, delta_2(), by_units, over)

      @head.writes
      def _():
        if bounded is not None:
          on_delta_1_out[*here(n)] = on_delta_1
        for columns, x in zip(panels, d_deltas):
          tiles.store(d_deltas_out.at[*here(n), :, columns], x.astype(dtype))

      y = chunks.normal.at[*here(n)]
      gains = functools.partial(head.of_channels, chunks.gain)
      scale = tokens[_SCALE]

      def rows(x, like):
        return tiles.per_row(x, like.shape[1])

      def across(x, y, mean_x, along):
        y = y.astype(jnp.float32)
        return x - rows(mean_x, x) - y * rows(along, x)

      along = inner(d_deltas, y)
      mean_d = tiles.row_mean(d_deltas)
      h = by_panel(lambda x, y: across(x, y, mean_d, along), d_deltas, y)
      # scale mean(h v) = mean(h delta) + scale mean(y v) mean(y d_deltas) (1 -
      # mean(y^2)), of which the last is epsilon scale^2.
      left = along * (networks.NORM_EPSILON * scale * scale)
      on_delta = inner(h, delta_2()) + tokens[_ALONG] * left

      def through_loss(h, gain):
        return (2 * gain * gain) * h * rows(scale, h)

      mean_there = tiles.row_mean(by_panel(through_loss, h, gains()))
      there_along = tiles.row_mean(
          by_panel(
              lambda h, gain, y: times(through_loss(h, gain), y), h, gains(), y
          )
      )

      def df(h, gain, y, delta):
        there = across(through_loss(h, gain), y, mean_there, there_along)
        y, delta = y.astype(jnp.float32), delta.astype(jnp.float32)
        there -= y * rows(on_delta, y) + h * rows(tokens[_ALONG], h)
        there -= delta * rows(along, delta)
        return (there * rows(scale, there)).astype(dtype)

      d_f = by_panel(df, h, gains(), y, delta_2())
      for columns, x in zip(panels, d_f):
        back[zero(), :, columns] = x
      tiles.plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    head.sync()

    for i, t in enumerate(own):
      if bounded is not None:
        bend = correct(n, t)
      else:
        bend = d_z.at[*there(n, t)] if wide else bends[i]
      x = over_tokens((weights[1], momentum[1]), t, deltas, (_G_2, _N_2))
      z0 = zero()
      x += product(layer_2.at[t + z0], tiles.turned(back.at[z0, :size]))  # dA
      x = added(x, chunks.d_acts.at[*there(n, t)])
      if bounded is not None:
        x = tiles.columns(
            lambda x, factor, act: x - factor * act.astype(jnp.float32),
            x,
            of_tokens(_ACTS),
            chunks.acts.at[*there(n, t)],
        )
      (dz,) = tiles.packed(
          tiles.columns(
              lambda x, slope, bend: (
                  x * slope.astype(jnp.float32) + bend.astype(jnp.float32)
              ).astype(dtype),
              x,
              chunks.slopes.at[*there(n, t)],
              bend,
          )
      )
      tiles.store(d_z.at[*there(n, t)], dz)

      def change_1(columns, dz=dz):
        return product(dz, keys.at[zero(), :size, columns])

      def change_2(columns, t=t):
        z0 = zero()
        return product.sum(
            [
                tiles.load(chunks.acts.at[*there(n, t)]),
                acts.at[t + z0, :, :size],
            ],
            [back.at[z0, :size, columns], deltas.at[z0, :size, columns]],
        )

      rests = update(0, i, n, rests, change_1)
      rests = update(1, i, n, rests, change_2)
    head.sync()
    pl.when(head.is_leader & (n > 0))(lambda: fetch(n - 1))
    return rests

  rests = jax.lax.fori_loop(0, shape.chunks, step, rests)
  head.store(first, rests, zero() if two else 0)


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
    meeting: of the blocks' warpgroups.
  """

  chunk_came: Any
  state_came: Any
  meeting: block.Meeting


def _rows(shape: shapes.Shape) -> int:
  """Returns the numbers per token in shared memory."""
  return 1 + (_ALONG if shape.max_grad_norm is None else _ACTS)


def _buffers(shape: shapes.Shape) -> _Buffers:
  buffer = functools.partial(shapes.buffer, shape)
  layer = buffer(shape.tiles_per_block, tiles.TILE, shape.width)
  tokens = buffer(1, tiles.TILE, shape.width)
  return _Buffers(
      state=((layer, layer), (layer, layer)),
      layer_2=layer,
      acts=buffer(shape.tiles_per_block, tiles.TILE, tiles.TILE),
      keys=tokens,
      deltas=tokens,
      back=tokens,
      tokens=tiles.plgpu.SMEM((_rows(shape), tiles.TILE), jnp.float32),
  )


def shared_bytes(shape: shapes.Shape) -> int:
  """Returns the shared memory of a block."""
  barriers = len(_Barriers._fields) - 1
  return block.shared_bytes(shape, _buffers(shape), barriers)


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
      chunk_came=barrier(num_arrivals=3 + shape.tiles_per_block),
      state_came=barrier(num_arrivals=4 * shape.tiles_per_block),
      meeting=block.meeting(shape),
  )
  on_delta_1, sums = None, 1
  if shape.max_grad_norm is not None:
    sums = 2
    row = *lead, shape.chunks, tiles.TILE
    on_delta_1 = jax.ShapeDtypeStruct(row, jnp.float32)
  first, after, d_z, d_deltas, on_delta_1, _ = block.launch(
      _kernel,
      NAME,
      shape,
      (last, chunks),
      (
          shapes.state_type(shape, *lead, rest=True),
          shapes.state_type(shape, *lead, shape.chunks, rest=False),
          shapes.tile_type(shape, shape.chunk, *lead, shape.chunks),
          jax.ShapeDtypeStruct(
              (*lead, shape.chunks, tiles.TILE, shape.width), shape.dtype
          ),
          on_delta_1,
          block.shared_type(
              shape, sums * shape.panels, tiles.TILE, shape.panel
          ),
      ),
      (_buffers(shape), barriers),
      interpret,
  )
  return (
      first,
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
