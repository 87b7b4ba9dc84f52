# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The kernel that reads and learns: `chunk.step`, product by product."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import networks
from titans_jax.memory.hopper import block
from titans_jax.memory.hopper import shapes
from titans_jax.memory.hopper import tiles

Array = jax.Array

NAME = "fused_memory_scan"
NAME_KEEPING = f"{NAME}_keeping"

# Rows of the numbers per token of a chunk, in `Chunks.tokens`.
_BETA_2, _F_2, _G_2, _N_2, _BETA_1, _F_1, _G_1, _N_1 = range(8)


class Chunks(NamedTuple):
  """What the kernel reads, of I instances and N chunks.

  Attributes:
    keys: [I, N, b, D].
    queries: [I, N, b, D].
    errors: keys - values, [I, N, b, D].
    scores: (-G_1 * (Q K^T))^T, [I, N, b, b].
    gradients: -G_2, [I, N, b, b].
    tokens: float32 [I, N, 8, 64], a coefficient per row, a token per column.
    ends: float32 [I, N, 6], last beta, f and m of each layer.
    gain: float32 [I, D].
    zero: int32 [1].
    starts: int32 [I, N], 1 where a document starts.
  """

  keys: Array
  queries: Array
  errors: Array
  scores: Array
  gradients: Array
  tokens: Array
  ends: Array
  gain: Array
  zero: Array
  starts: Array


def _kernel(shape: shapes.Shape, interpreted: bool, inputs, results, scratch):
  """What a warpgroup does for one head."""
  state, initial, chunks = inputs
  outputs, losses, last, shared, *kept = results
  buffers, barriers = scratch
  (weights, momentum), (acts, reads) = buffers.state, buffers.hidden
  keys, queries, scores = buffers.keys, buffers.queries, buffers.scores
  errors, tokens = buffers.errors, buffers.tokens
  chunk_came, gradients_came = barriers.chunk_came, barriers.gradients_came
  size, dtype, panels = shape.chunk, shape.dtype, shape.columns()
  head = block.Block(
      shape, interpreted, buffers.state, barriers.meeting, chunks.zero
  )
  instance, own, zero = head.instance, head.own, head.zero
  all_tiles = range(shape.tiles_per_block)
  product = tiles.Products(interpreted)
  # Of a cluster in a chunk.
  meetings = 1 if shape.max_grad_norm is None else 2

  def times_tokens(matrix, t, rows):
    z0 = zero()
    return product(matrix.at[t + z0], tiles.turned(rows.at[z0, :size]))

  def of_rows(ref):
    """Returns the squared norms of a tile's rows, [64]."""

    def square(x):
      return jnp.square(x.astype(jnp.float32))

    squares = [
        jnp.sum(tiles.columns(square, ref[zero(), :, columns]), axis=1)
        for columns in panels
    ]
    return functools.reduce(jnp.add, squares)

  def of_hidden(ref):
    """Returns the squared norms of a token's hidden units here, [64]."""
    z0 = zero()
    x = product.sum(
        [tiles.turned(ref.at[t + z0]) for t in all_tiles],
        [ref.at[t + z0, :, :size] for t in all_tiles],
    )
    return jnp.sum(tiles.diagonal(x), axis=1)

  def bound(a, delta):
    return chunk_lib.scale_to_bound(a * delta, shape.max_grad_norm)

  def scale_rows(ref, scale):
    def rows(x):
      x = x.astype(jnp.float32) * tiles.per_row(scale, x.shape[1])
      return x.astype(dtype)

    whole = ref.shape[-1]
    for columns in panels if whole == shape.width else [slice(whole)]:
      ref[zero(), :, columns] = tiles.columns(rows, ref[zero(), :, columns])

  def fetch(n):
    copy = functools.partial(tiles.plgpu.copy_gmem_to_smem, barrier=chunk_came)
    copy(chunks.keys.at[instance, n], keys.at[0, :size])
    copy(chunks.queries.at[instance, n], queries.at[0, :size])
    copy(chunks.scores.at[instance, n], scores.at[0, :size])
    copy(chunks.errors.at[instance, n], errors.at[0, :size])
    copy(chunks.tokens.at[instance, n], tokens)

  head.leads(lambda: fetch(0))
  rests = head.fetch_state(state, barriers.state_came)

  def update(layer, i, n, rests, changes):
    """Writes a tile's next W and S, given each one's change of columns; returns the
    rests.

    W' = beta W + f S - A^T diag(g) Delta,  S' = m S - A^T diag(n) Delta.
    """
    beta, f, m = (
        chunks.ends[instance, n + zero(), 3 * layer + k] for k in range(3)
    )
    w, s = weights[layer], momentum[layer]
    t = own[i] + zero()
    for panel, columns in enumerate(panels):
      place = head.place(i, layer, panel)

      def new_weights(w, rests, s, change, place=place):
        w = tiles.whole(w, rests, place)
        w = beta * w + f * s.astype(jnp.float32) + change
        rounded = w.astype(dtype)
        return rounded, tiles.with_rest(rests, place, w, rounded)

      def new_momentum(s, change):
        return (m * s.astype(jnp.float32) + change).astype(dtype)

      old = s[t, :, columns]
      w[t, :, columns], rests = tiles.packed(
          *tiles.columns(
              new_weights, w[t, :, columns], rests, old, changes[0](columns)
          )
      )
      s[t, :, columns] = tiles.columns(
          new_momentum, s[t, :, columns], changes[1](columns)
      )
    return rests

  def step(n, rests):
    rests = jax.lax.cond(
        chunks.starts[instance, n + zero()] > 0,
        lambda _: head.restart(initial, barriers.state_came),
        lambda rests: rests,
        rests,
    )
    tiles.plgpu.barrier_wait(chunk_came)

    # The keys' hidden units: a and its slope, which waits where the queries' a
    # will be.
    for t in own:
      z = times_tokens(weights[0], t, keys)
      t += zero()
      acts[t, :, :size], reads[t, :, :size] = tiles.columns(
          lambda z: (
              tiles.gelu(z).astype(dtype),
              tiles.gelu_slope(z).astype(dtype),
          ),
          z,
      )
    head.sync()

    @head.leads
    def _():
      if shape.keep_every is not None:
        due = jax.lax.rem(n, shape.keep_every) == 0
        where = instance, jax.lax.div(n, shape.keep_every)
        pl.when(due)(lambda: head.store_rounded(kept[0], where))
      # f(k) of all tokens, the loss, and its gradient delta_2.
      z0 = zero()

      def f(columns):
        return product.sum(
            [tiles.turned(acts.at[t + z0]) for t in all_tiles],
            [weights[1].at[t + z0, :, columns] for t in all_tiles],
        )

      parts = [functools.partial(f, columns) for columns in panels]
      found = head.total(shared.outputs, meetings * n, parts)
      y, scale = tiles.normalize(
          [tiles.columns(lambda x: x, part) for part in found]
      )
      gains = functools.partial(head.of_channels, chunks.gain)
      dy = [
          tiles.columns(
              lambda y, error, gain: 2 * (error.astype(jnp.float32) + gain * y),
              y,
              errors[zero(), :, columns],
              gain,
          )
          for y, gain, columns in zip(y, gains(), panels)
      ]
      loss = 0.25 * sum(jnp.sum(x * x, axis=1) for x in dy)

      @head.writes
      def _():
        losses[instance, n + zero()] = loss

      dy = [
          tiles.columns(lambda dy, gain: dy * gain, dy, gain)
          for dy, gain in zip(dy, gains())
      ]
      mean = tiles.row_mean(dy)
      along = tiles.row_mean([y * dy for y, dy in zip(y, dy)])

      def across(dy, y):
        rows = functools.partial(tiles.per_row, columns=dy.shape[1])
        return rows(scale) * (dy - rows(mean) - y * rows(along))

      # Errors have been read: delta_2 takes their place.
      for columns, *parts in zip(panels, dy, y):
        delta = tiles.columns(across, *parts)
        errors[zero(), :, columns] = delta.astype(dtype)
      if shape.keep_every is not None:
        tiles.plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    head.sync()
    deltas = errors

    def of_tokens(row):
      return tiles.per_column(tokens[row, :size])

    def delta_1(t):
      return tiles.columns(
          lambda x, slope: (x * slope.astype(jnp.float32)).astype(dtype),
          times_tokens(weights[1], t, deltas),
          reads[t + zero(), :, :size],
      )

    if shape.max_grad_norm is not None:
      # Where the slopes are: |delta_1| is of all tiles.
      for t in own:
        reads[t + zero(), :, :size] = delta_1(t)
      head.sync()

      @head.leads
      def _():
        parts = [functools.partial(of_hidden, ref) for ref in (reads, acts)]
        of_delta_1, of_acts = map(
            tiles.load_rows,
            head.total(shared.squares, meetings * n + 1, parts),
        )
        # To scale what delta_1 is multiplied with spares scaling all its tiles.
        scale = bound(of_rows(keys), of_delta_1)
        for row in (_G_1, _N_1):
          tokens[row] = tokens[row] * scale
        scale_rows(scores, scale)
        scale_rows(deltas, bound(of_acts, of_rows(deltas)))

      head.sync()

    for i, t in enumerate(own):
      if shape.max_grad_norm is None:
        (delta,) = tiles.packed(delta_1(t))
      else:
        delta = reads[t + zero(), :, :size]

      x = product(delta, scores.at[zero(), :size])
      x += of_tokens(_BETA_1) * times_tokens(weights[0], t, queries)
      x += of_tokens(_F_1) * times_tokens(momentum[0], t, queries)
      reads[t + zero(), :, :size] = tiles.columns(
          lambda x: tiles.gelu(x).astype(dtype), x
      )

      def change(row, columns, delta=delta):
        share = tiles.columns(
            lambda delta, g: (delta.astype(jnp.float32) * g).astype(dtype),
            delta,
            of_tokens(row),
        )
        return product(*tiles.packed(share), keys.at[zero(), :size, columns])

      changes = [functools.partial(change, row) for row in (_G_1, _N_1)]
      rests = update(0, i, n, rests, changes)
    head.sync()

    @head.leads
    def _():
      # f(q), and the rows that the second layer's update takes.
      tiles.plgpu.copy_gmem_to_smem(
          chunks.gradients.at[instance, n],
          scores.at[0, :size],
          gradients_came,
      )

      def times(right):
        z0 = zero()
        return product.sum(
            [tiles.turned(reads.at[t + z0]) for t in all_tiles],
            [right(t + z0) for t in all_tiles],
        )

      of_chunk = times(lambda t: acts.at[t, :, :size])
      tiles.plgpu.barrier_wait(gradients_came)
      scores[zero()] = tiles.columns(
          lambda g, x: (g.astype(jnp.float32) * x).astype(dtype),
          scores[zero()],
          of_chunk,
      )
      tiles.plgpu.commit_smem()
      for columns in panels:
        f = tiles.per_row(tokens[_BETA_2], shape.panel) * times(
            lambda t, columns=columns: weights[1].at[t, :, columns]
        )
        f += tiles.per_row(tokens[_F_2], shape.panel) * times(
            lambda t, columns=columns: momentum[1].at[t, :, columns]
        )
        f += product(scores.at[zero()], deltas.at[zero(), :size, columns])
        part = head.part_of(outputs.at[instance, n + zero()])
        tiles.store(part.at[:, columns], f)
      # The chunk's keys and queries have been read.
      for row, target in ((_G_2, keys), (_N_2, queries)):
        g = tokens[row]
        for columns in panels:
          target[zero(), :, columns] = tiles.columns(
              lambda delta, g=g: (
                  delta.astype(jnp.float32) * tiles.per_row(g, delta.shape[1])
              ).astype(dtype),
              deltas[zero(), :, columns],
          )

    head.sync()

    for i, t in enumerate(own):

      def change(scaled, columns, t=t):
        z0 = zero()
        return product(acts.at[t + z0, :, :size], scaled.at[z0, :size, columns])

      changes = [functools.partial(change, x) for x in (keys, queries)]
      rests = update(1, i, n, rests, changes)
    head.sync()
    pl.when(head.is_leader & (n + 1 < shape.chunks))(lambda: fetch(n + 1))
    return rests

  rests = jax.lax.fori_loop(0, shape.chunks, step, rests)
  head.store(last, rests, zero())


class _Buffers(NamedTuple):
  """Shared memory.

  Attributes:
    state: W of both layers, and S.
    hidden: the keys' hidden units; and their slopes, with a bound then delta_1, then
      the queries' units.
    keys: of a chunk; then what the second layer's W takes.
    queries: of a chunk; then what the second layer's S takes.
    scores: of either layer.
    errors: then delta_2, which is bounded when the first layer is done with it.
    tokens: as in `Chunks`; g and n of the first layer are multiplied with what
      bounds delta_1, and its scores too.
  """

  state: Any
  hidden: Any
  keys: Any
  queries: Any
  scores: Any
  errors: Any
  tokens: Any


class _Barriers(NamedTuple):
  """What is waited for.

  Attributes:
    chunk_came: `fetch` has done its copies.
    gradients_came: the second layer's G is there.
    state_came: the state is there.
    meeting: of the blocks' warpgroups.
  """

  chunk_came: Any
  gradients_came: Any
  state_came: Any
  meeting: block.Meeting


class _Shared(NamedTuple):
  """What the blocks of a head add up (`block.Block.total`).

  Attributes:
    outputs: f(k).
    squares: squared norms of delta_1 and of the keys' hidden units.
  """

  outputs: Any
  squares: Any


def _buffers(shape: shapes.Shape) -> _Buffers:
  width = shape.width
  buffer = functools.partial(shapes.buffer, shape)
  layer = buffer(shape.tiles_per_block, tiles.TILE, width)
  hidden = buffer(shape.tiles_per_block, tiles.TILE, tiles.TILE)
  tokens = buffer(1, tiles.TILE, width)
  return _Buffers(
      state=((layer, layer), (layer, layer)),
      hidden=(hidden, hidden),
      keys=tokens,
      queries=tokens,
      scores=buffer(1, tiles.TILE, shape.chunk),
      errors=tokens,
      tokens=tiles.plgpu.SMEM((8, tiles.TILE), jnp.float32),
  )


def shared_bytes(shape: shapes.Shape) -> int:
  """Returns the shared memory of a block."""
  barriers = len(_Barriers._fields) - 1
  return block.shared_bytes(shape, _buffers(shape), barriers)


def run(
    shape: shapes.Shape,
    state: shapes.State,
    initial: shapes.State,
    chunks: Chunks,
    interpret,
):
  """Returns outputs, losses, the last state and, if wanted, the states kept.

  Outputs are f(q) for each block's hidden units, float32 [I, N, blocks, 64, D].
  States kept are as the products have them, rounded, without a rest: the backward pass
  rounds them for its products, and is no less exact than those.

  Args:
    shape: sizes.
    state: to begin with.
    initial: that documents start from.
    chunks: from `prepare`.
    interpret: `plgpu.InterpretGPUParams`; None: compiled.
  """
  of_chunks = shape.instances, shape.chunks, tiles.TILE
  squares = None
  if shape.max_grad_norm is not None:
    squares = block.shared_type(shape, 2, tiles.TILE)
  results: tuple[Any, ...] = (
      jax.ShapeDtypeStruct(
          (*of_chunks[:2], shape.blocks, tiles.TILE, shape.width), jnp.float32
      ),
      jax.ShapeDtypeStruct(of_chunks, jnp.float32),
      shapes.state_type(shape, shape.instances, rest=True),
      _Shared(
          block.shared_type(shape, shape.panels, tiles.TILE, shape.panel),
          squares,
      ),
  )
  name = NAME
  if shape.keep_every is not None:
    count = -(-shape.chunks // shape.keep_every)
    results += (shapes.state_type(shape, shape.instances, count, rest=False),)
    name = NAME_KEEPING
  barrier = tiles.plgpu.Barrier
  barriers = _Barriers(
      chunk_came=barrier(num_arrivals=5),
      gradients_came=barrier(num_arrivals=1),
      state_came=barrier(num_arrivals=4 * shape.tiles_per_block),
      meeting=block.meeting(shape),
  )
  outputs, losses, last, _, *kept = block.launch(
      _kernel,
      name,
      shape,
      (state, initial, chunks),
      results,
      (_buffers(shape), barriers),
      interpret,
  )
  return outputs, losses, last, *kept


def prepare(
    shape: shapes.Shape,
    chunks: chunk_lib.Prepared,
    params: networks.Params,
    starts: Array | None,
) -> Chunks:
  """Computes what does not depend on the state, for all chunks at once: the
  kernel's time is what has to wait for it.

  Args:
    shape: sizes.
    chunks: leaves [B, H, N, ...], with coefficients.
    params: of the network.
    starts: bool [B, H, N], where a document starts, or None.
  """
  gates: Any = chunks.gates
  first, second = gates

  def operand(x):
    return shapes.flat(shape, x).astype(shape.dtype)

  keys, queries = operand(chunks.keys), operand(chunks.queries)
  scores = jnp.einsum(
      "inkd,inqd->inkq", keys, queries, preferred_element_type=jnp.float32
  )
  scores *= -jnp.swapaxes(shapes.flat(shape, first.gradients), -1, -2)
  rows: list[Any] = [None] * 8
  rows[_BETA_2], rows[_F_2] = second.weights, second.momentum
  rows[_G_2], rows[_N_2] = -second.last_gradients, -second.momentum_gradients
  rows[_BETA_1], rows[_F_1] = first.weights, first.momentum
  rows[_G_1], rows[_N_1] = -first.last_gradients, -first.momentum_gradients
  if starts is None:
    starts = jnp.zeros((shape.instances, shape.chunks), jnp.int32)
  return Chunks(
      keys=keys,
      queries=queries,
      errors=operand(chunks.keys - chunks.values),
      scores=scores.astype(shape.dtype),
      gradients=operand(-second.gradients),
      tokens=shapes.rows_of_tokens(shape, rows),
      ends=shapes.ends(shape, gates),
      gain=shapes.gains(shape, params, chunks.keys.shape[1]),
      zero=jnp.zeros(1, jnp.int32),
      starts=starts.reshape(shape.instances, -1).astype(jnp.int32),
  )
