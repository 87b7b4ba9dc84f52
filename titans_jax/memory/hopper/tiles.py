# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the kernels do with tiles of 64 rows, and how they are started."""

from __future__ import annotations

import functools
import math
from typing import Any, Sequence

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from titans_jax.memory import networks

plgpu: Any
try:
  from jax.experimental.mosaic.gpu import utils as mosaic_utils
  from jax.experimental.pallas import mosaic_gpu as plgpu
except ImportError:  # A jaxlib without it.
  plgpu = None

Array = jax.Array

# Rows of a `wgmma`.
TILE = 64


def columns(fn, *xs):
  """Applies fn to 16 columns after the other, which frees registers as it goes.

  Args:
    fn: of strips of arrays, each [64, 16].
    *xs: arrays [64, n], references to such in main memory, which are loaded strip by
      strip, or tuples of these, which are added.
  """
  total = (xs[0][0] if isinstance(xs[0], tuple) else xs[0]).shape[1]
  size = min(16, total)

  def strip(x, i):
    if isinstance(x, tuple):
      return functools.reduce(jnp.add, [strip(part, i) for part in x])
    if isinstance(x, jax.Array):
      return x[:, i : i + size]
    return load(x.at[:, i : i + size])

  parts = [fn(*(strip(x, i) for x in xs)) for i in range(0, total, size)]
  if len(parts) == 1:
    return parts[0]
  return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)


def per_row(x: Array, columns: int) -> Array:
  return jax.lax.broadcast_in_dim(x, (TILE, columns), [0])


def per_column(x: Array) -> Array:
  return jax.lax.broadcast_in_dim(x, (TILE, x.shape[0]), [1])


def diagonal(x: Array) -> Array:
  """Returns [64, n] with zeros off the diagonal."""
  row, column = (
      plgpu.broadcasted_iota(
          jnp.int32, x.shape, axis, layout=plgpu.Layout.WGMMA
      )
      for axis in range(2)
  )
  return jnp.where(row == column, x, 0)


def packed(*xs: Array) -> tuple[Array, ...]:
  """Keeps the compiler from rounding a value at its use instead of here, which
  would hold it in twice the registers."""
  return tuple(jax.lax.optimization_barrier(xs))


def load(ref, axis: int | None = None) -> Array:
  """Loads [64, n]; or what lies along an axis of such."""
  layout = plgpu.Layout.WGMMA
  if axis is not None:
    layout = layout.reduce(1 - axis)
  return plgpu.load(ref, layout=layout, optimized=False)


def load_rows(x) -> Array:
  """Returns an array [64], or the sum of a tuple of references to such."""
  if isinstance(x, tuple):
    return functools.reduce(jnp.add, [load(ref, 0) for ref in x])
  return x


def store(ref, x: Array) -> None:
  """Writes [64, n], or [64], to main memory, also of numbers that fill half of a
  sector."""
  if hasattr(plgpu, "store"):
    plgpu.store(ref, x, optimized=False)
  else:  # jax 0.11, of which every store is such a one.
    ref[...] = x


def fence() -> None:
  """Lets all blocks of a cluster see what this thread wrote, and it what they did,
  before and after they have met."""

  @plgpu.inline_mgpu()
  def run(context):
    del context
    mosaic_utils.inline_ptx("fence.acq_rel.cluster;", has_side_effects=True)

  run()


def row_mean(x: Sequence[Array]) -> Array:
  """Returns the mean of rows whose panels are given, [64]."""
  width = sum(panel.shape[1] for panel in x)
  total = functools.reduce(jnp.add, [jnp.sum(panel, axis=1) for panel in x])
  return total * (1 / width)


def normalize(x: Sequence[Array]) -> tuple[list[Array], Array]:
  """Returns LN(x), panels of [64, D], and one over the deviation [64]."""
  mean = row_mean(x)
  x = [panel - per_row(mean, panel.shape[1]) for panel in x]
  variance = row_mean([panel * panel for panel in x])
  scale = jax.lax.rsqrt(variance + networks.NORM_EPSILON)
  return [panel * per_row(scale, panel.shape[1]) for panel in x], scale


def gelu(z: Array) -> Array:
  return z * networks.gelu_gate(z)


def gelu_slope(z: Array) -> Array:
  gate = networks.gelu_gate(z)
  return gate + z * gate * (1 - gate) * networks.gelu_steepness(z)


def whole(rounded: Array, rests: Array, place: int) -> Array:
  """Returns the float32 numbers that `with_rest` was given, to a unit there."""
  byte = (rests << (24 - 8 * place)) >> 24
  bits = _bits(rounded) + (byte << 8)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def with_rest(rests: Array, place: int, x: Array, rounded: Array) -> Array:
  """Keeps what rounding to bfloat16 left of numbers: the next eight bits.

  A byte of each, the distance in units of the last of 16 bits of mantissa, takes
  half the registers that a second bfloat16 would.

  Args:
    rests: int32, four bytes for each number, of four arrays alike.
    place: of the byte that is x's.
    x: float32.
    rounded: to one of the nearest.

  Returns:
    `rests` with that byte.
  """
  # 128 units where x is all but in the middle of two.
  byte = jnp.minimum((_bits(x) - _bits(rounded) + 128) >> 8, 127)
  change = ((rests >> (8 * place)) ^ byte) & 255
  return rests ^ (change << (8 * place))


def _bits(x: Array) -> Array:
  return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)


class Products:
  """Products of 64 rows, accumulated in float32.

  An operand on the left is in shared memory or in registers, one on the right in
  shared memory. GPU interpret mode has none in registers: there they are
  multiplied by JAX.
  """

  def __init__(self, interpreted: bool):
    self._interpreted = interpreted

  def __call__(self, left, right) -> Array:
    return self.sum([left], [right])

  def sum(self, lefts, rights) -> Array:
    """Returns the sum of products."""
    if self._interpreted and any(isinstance(x, jax.Array) for x in lefts):
      return functools.reduce(
          jnp.add,
          [
              jnp.dot(left, right[...], preferred_element_type=jnp.float32)
              if isinstance(left, jax.Array)
              else self(left, right)
              for left, right in zip(lefts, rights)
          ],
      )

    def run(accumulator):
      for left, right in zip(lefts, rights):
        plgpu.wgmma(accumulator, left, right)
      return accumulator[...]

    shape = (TILE, rights[0].shape[1])
    return pl.run_scoped(run, plgpu.ACC(shape, jnp.float32))


def turned(ref):
  return ref.transpose((1, 0))


def buffer(sizes: tuple[int, ...], dtype, columns: int):
  """Returns a buffer in shared memory.

  Args:
    sizes: of its axes; the last two are rows and columns of operands.
    dtype: of its numbers.
    columns: every product contracts or slices whole columns of this many.
  """
  if dtype != jnp.bfloat16:  # Interpreted.
    return plgpu.SMEM(sizes, dtype)
  transforms = (
      plgpu.TilingTransform((8, columns)),
      plgpu.SwizzleTransform(2 * columns),
  )
  return plgpu.SMEM(sizes, dtype, transforms=transforms)


def shared_bytes(buffers: Any, barriers: int) -> int:
  """Returns the shared memory of buffers, which begin at whole KiB, and of
  barriers."""
  end = 0
  for x in jax.tree.leaves(buffers):
    size = math.prod(x.shape) * jnp.dtype(x.dtype).itemsize
    end = -(-end // 1024) * 1024 + size
  return end + 8 * barriers
