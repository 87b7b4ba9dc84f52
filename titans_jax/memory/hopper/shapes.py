# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sizes that the kernels run, and the state as they have it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp

from pallas_kernels import tuning
from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import networks
from titans_jax.memory.hopper import tiles

Array = jax.Array

CHUNKS = (16, 32, 64)
# Head dimensions, with four hidden units a channel.
WIDTHS = (16, 32, 48, 64, 96, 128)


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a scan.

  Attributes:
    instances: I, rows times heads.
    chunks: N.
    chunk: b.
    width: D.
    hidden: units between the layers.
    dtype: of the products' operands.
    max_grad_norm: as of `chunk.Rule`.
    keep_every: chunks between states that are kept; None: none is.
  """

  instances: int
  chunks: int
  chunk: int
  width: int
  hidden: int
  dtype: Any
  max_grad_norm: float | None = None
  keep_every: int | None = None

  @property
  def tiles(self) -> int:
    return self.hidden // tiles.TILE

  @property
  def blocks(self) -> int:
    """Blocks of threads that share a head: one multiprocessor's shared memory
    holds two tiles of 96 or 128 channels, with what else they need."""
    return 1 if self.width <= tiles.TILE else self.tiles // 2

  @property
  def tiles_per_block(self) -> int:
    return self.tiles // self.blocks

  @property
  def tiles_per_group(self) -> int:
    """Tiles that a warpgroup owns: four warpgroups would have too few registers
    each for 64 channels."""
    return 2 if self.tiles_per_block > 3 else 1

  @property
  def warpgroups(self) -> int:
    """Warpgroups of a block."""
    return self.tiles_per_block // self.tiles_per_group

  @property
  def panels(self) -> int:
    """Parts of equal width that rows of D channels are taken in, each small enough
    for registers."""
    return -(-self.width // tiles.TILE)

  @property
  def panel(self) -> int:
    return self.width // self.panels

  def columns(self) -> list[slice]:
    """Returns the channels of every panel."""
    starts = range(0, self.width, self.panel)
    return [slice(start, start + self.panel) for start in starts]


def hidden(options: chunk_lib.Rule, width: int) -> int:
  """Returns the hidden units of a rule's network."""
  return options.net.layer_shapes(width)[0][1]


class State(NamedTuple):
  """W and S of I instances, hidden units first: leaves [I, hidden / 64, 64, D].

  Attributes:
    weights: both layers', in the products' dtype.
    momentum: both layers', likewise.
    rest: what rounding left of the weights, or nothing.
  """

  weights: tuple[Array, Array]
  momentum: tuple[Array, Array]
  rest: tuple[Array, ...]


def tile_type(shape: Shape, columns: int, *lead: int) -> jax.ShapeDtypeStruct:
  """Returns the type of all tiles of something, [*lead, hidden / 64, 64, n]."""
  sizes = (*lead, shape.tiles, tiles.TILE, columns)
  return jax.ShapeDtypeStruct(sizes, shape.dtype)


def state_type(shape: Shape, *lead: int, rest: bool) -> State:
  """Returns the type of a kernel's state, leaves [*lead, hidden / 64, 64, D].

  Args:
    shape: sizes.
    *lead: leading axes.
    rest: whether it has one.
  """
  x = tile_type(shape, shape.width, *lead)
  return State((x, x), (x, x), (x, x) if rest else ())


def buffer(shape: Shape, *sizes: int):
  """Returns a buffer in shared memory, of rows and columns of operands."""
  # Every product contracts or slices whole columns of this many numbers.
  columns = math.gcd(tiles.TILE, shape.panel, shape.chunk)
  return tiles.buffer(sizes, shape.dtype, columns)


def round_to(dtype, *xs: Array) -> tuple[Array, ...]:
  """Returns arrays in a dtype, which XLA would pass on unrounded: it takes a number
  that is rounded and widened again for the number itself."""
  return jax.lax.optimization_barrier(tuple(x.astype(dtype) for x in xs))


def _split(x: Array, dtype) -> tuple[Array, Array]:
  """Returns x rounded, and what that left."""
  (first,) = round_to(dtype, x)
  return first, (x - first.astype(x.dtype)).astype(dtype)


def pack(shape: Shape, carry: chunk_lib.Carry) -> State:
  """Returns a turned carry [B, H, D, hidden] as the kernels have it."""

  def rows(x):
    x = jnp.swapaxes(x, -1, -2)
    x = x.reshape(shape.instances, shape.tiles, tiles.TILE, shape.width)
    return x.astype(jnp.float32)

  (w1, w2), (s1, s2) = jax.tree.map(rows, (carry.weights, carry.momentum))
  w1, rest1 = _split(w1, shape.dtype)
  w2, rest2 = _split(w2, shape.dtype)
  return State(
      (w1, w2), (s1.astype(shape.dtype), s2.astype(shape.dtype)), (rest1, rest2)
  )


def unpack(state: State, lead: tuple[int, ...], like) -> chunk_lib.Carry:
  """Returns a state [I, ...] as a turned carry, leaves [*lead, D, hidden]."""

  def turned(x):
    x = x.reshape(*lead, -1, x.shape[-1])
    return jnp.swapaxes(x, -1, -2)

  weights = tuple(w.astype(jnp.float32) for w in state.weights)
  if state.rest:
    weights = tuple(
        w + rest.astype(jnp.float32) for w, rest in zip(weights, state.rest)
    )
  carry = chunk_lib.Carry(
      jax.tree.map(turned, weights), jax.tree.map(turned, state.momentum)
  )
  return jax.tree.map(lambda x, y: x.astype(y.dtype), carry, like)


def flat(shape: Shape, x: Array) -> Array:
  """Returns [B, H, N, ...] as [I, N, ...]."""
  return x.reshape(shape.instances, shape.chunks, *x.shape[3:])


def rows_of_tokens(shape: Shape, rows: Sequence[Array]) -> Array:
  """Returns rows of numbers per token, float32 [I, N, rows, 64].

  Args:
    shape: sizes.
    rows: each of [B, H, N, b] or [I, N, b], with axes of one anywhere.
  """
  lead = shape.instances, shape.chunks, shape.chunk
  x = jnp.stack([row.reshape(lead) for row in rows], axis=2)
  padding = [(0, 0)] * 3 + [(0, tiles.TILE - shape.chunk)]
  return jnp.pad(x.astype(jnp.float32), padding)


def ends(shape: Shape, gates: Any) -> Array:
  """Returns the last beta, f and m of each layer, float32 [I, N, 6].

  Args:
    shape: sizes.
    gates: coefficients of both layers, leaves [B, H, N, ...] or [I, N, ...].
  """
  lead = shape.instances, shape.chunks
  last = [
      x.reshape(lead).astype(jnp.float32)
      for c in gates
      for x in (c.last_weights, c.last_momentum, c.momentum_kept)
  ]
  return jnp.stack(last, axis=-1)


def gains(shape: Shape, params: networks.Params, heads: int) -> Array:
  """Returns the gain of every instance, float32 [I, D]."""
  batch = shape.instances // heads
  gain = jnp.broadcast_to(params["gain"], (batch, heads, shape.width))
  return gain.reshape(-1, shape.width).astype(jnp.float32)


def why_not(
    options: chunk_lib.Rule,
    carry: chunk_lib.Carry,
    chunks: chunk_lib.Prepared,
) -> str | None:
  """Returns why a scan cannot run as this kernel; None: it can.

  Args:
    options: the rule.
    carry: leaves [B, H, ...], turned.
    chunks: leaves [B, H, N, ...].
  """
  return (
      why_not_device()
      or why_not_rule(options, carry)
      or why_not_shape(options, chunks.keys.shape)
  )


def why_not_unasked(chunks: chunk_lib.Prepared) -> str | None:
  """Returns why a scan that can run as this kernel should only where that is asked
  for; None: it is as good as measured."""
  width = chunks.keys.shape[-1]
  if width > tiles.TILE:
    return (
        f"heads of {width} channels are split over a cluster of blocks, which has"
        " not run on a GPU yet; implementation='pallas' asks for it"
    )
  return None


def why_not_device() -> str | None:
  """Returns why the kernel does not run on the devices meant, or here at all."""
  if tiles.plgpu is None or not hasattr(tiles.plgpu, "InterpretGPUParams"):
    return f"the kernel for Hopper needs jax 0.11, this is {jax.__version__}"
  kind = tuning.gpu_kind()
  if kind is None or not tuning.is_hopper(kind):
    return f"the kernel is for H100 and H200, not for {kind or 'no GPU'}"
  return None


def why_not_rule(options, carry) -> str | None:
  """Returns why the kernel does not know a rule, whatever its sizes."""
  net = options.net
  default = networks.MLP(expansion=getattr(net, "expansion", 4))
  if net != default:
    return f"the kernel is written for {default}, not for {net}"
  if carry.momentum is None:
    return "the kernel has no rule without momentum"
  return None


def why_not_shape(options, keys: tuple[int, ...]) -> str | None:
  """Returns why the kernel does not run on keys [B, H, N, b, D]."""
  chunk, width = keys[-2:]
  units = hidden(options, width)
  if options.dtype is None or jnp.dtype(options.dtype) != jnp.bfloat16:
    return "the kernel's products are of bfloat16"
  if width not in WIDTHS:
    return (
        f"the kernel takes head dimensions of {', '.join(map(str, WIDTHS))}, not"
        f" of {width}"
    )
  if units != 4 * width:
    return f"the kernel takes {4 * width} hidden units, not {units}"
  if chunk not in CHUNKS:
    return (
        f"the kernel takes chunks of {', '.join(map(str, CHUNKS))} tokens, not of"
        f" {chunk}"
    )
  return None
