# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Blocks of threads: what their warpgroups share, and how they are started."""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple, Sequence

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from titans_jax.memory.hopper import shapes
from titans_jax.memory.hopper import tiles

Array = jax.Array


class Meeting(NamedTuple):
  """How the blocks of a head meet, of which there may be one.

  Attributes:
    everyone: barrier of a block's warpgroups.
    leaders: two barriers of all blocks' leaders, which take turns, or None.
  """

  everyone: Any
  leaders: Any


class Block:
  """What a warpgroup of a kernel knows of its block.

  A head has one block, or a cluster of them that share its tiles. Their W and S
  are in shared memory; what rounding left of W is in the registers of the warpgroup
  that owns the tile, a byte of an int32 [64, D / panels] for each of its tiles,
  layers and panels ("rests"). Tiles are counted within the block; `place_of` is
  their number in the head.

  Attributes:
    instance: the head.
    own: numbers of the warpgroup's tiles.
    is_leader: whether it is the one that does what is done to whole rows.
  """

  def __init__(
      self,
      shape: shapes.Shape,
      interpreted: bool,
      held,
      meeting: Meeting,
      zero,
  ):
    """Takes what a kernel was given.

    Args:
      shape: sizes.
      interpreted: whether it is.
      held: references in shared memory, W and S of both layers.
      meeting: its barriers.
      zero: reference to a zero in main memory.
    """
    self._shape, self._interpreted = shape, interpreted
    self._held, self._zero = (*held[0], *held[1]), zero
    self._meeting = meeting
    self.instance = jax.lax.axis_index("instance")
    self._block = jax.lax.axis_index("block") if shape.blocks > 1 else None
    group = jax.lax.axis_index("group")
    first = group * shape.tiles_per_group
    self.own = [first + i for i in range(shape.tiles_per_group)]
    self.is_leader = group == 0

  def leads(self, fn: Callable[[], None]) -> None:
    """Runs what is the leader's."""
    pl.when(self.is_leader)(fn)

  def writes(self, fn: Callable[[], None]) -> None:
    """Runs what one of the leaders does, where all have the same to write."""
    if self._block is None:
      fn()
    else:
      pl.when(self._block == 0)(fn)

  def place_of(self, t):
    """Returns the number in the head of a tile of the block."""
    if self._block is None:
      return t
    return self._block * self._shape.tiles_per_block + t

  def part_of(self, ref):
    """Returns the block's part of what has one for each, [blocks, ...]."""
    return ref.at[0 if self._block is None else self._block]

  def sync(self) -> None:
    """Waits for all warpgroups, and lets them read what this one wrote."""
    tiles.plgpu.commit_smem()
    tiles.plgpu.barrier_arrive(self._meeting.everyone)
    tiles.plgpu.barrier_wait(self._meeting.everyone)

  def total(
      self, shared, turn, parts: Sequence[Callable[[], Array]]
  ) -> list[Any]:
    """Adds over all blocks; of their leaders, which wait for each other.

    They add what lies in main memory, all in the same order: every block goes on
    with the same numbers.

    Args:
      shared: reference there, float32 [I, 2, blocks, n, ...], used in turns: who
        writes has met all since they read what it had last. None: one block.
      turn: how often they have met.
      parts: give the block's own, n arrays [64, columns] or [64].

    Returns:
      The sums, as `tiles.columns` or `tiles.load_rows` take them: to load one anew may
      take less than to hold it.
    """
    if self._block is None:
      return [part() for part in parts]
    which = jax.lax.rem(turn, 2)
    shared = shared.at[self.instance, which]
    for i, part in enumerate(parts):
      tiles.store(shared.at[self._block, i], part())
    # The barrier's own order is that of a block: what others wrote is seen by the
    # fences alone, of each thread, behind what the others of its warpgroup wrote.
    fence = (lambda: None) if self._interpreted else tiles.fence
    tiles.plgpu.commit_smem()
    fence()
    tiles.plgpu.barrier_arrive(self._meeting.leaders.at[which])
    tiles.plgpu.barrier_wait(self._meeting.leaders.at[which])
    fence()
    return [
        tuple(shared.at[block, i] for block in range(self._shape.blocks))
        for i in range(len(parts))
    ]

  def apart(self) -> None:
    """Keeps the compiler from loading before what is needed after, or once what is
    needed on both sides, which would take registers between."""
    tiles.plgpu.commit_smem()

  def of_channels(self, ref) -> list[Array]:
    """Loads the head's numbers per channel, [D], as panels of [64, D]."""
    self.apart()
    ref = ref.at[self.instance + self.zero()]
    return [
        tiles.per_column(tiles.load(ref.at[columns], 1))
        for columns in self._shape.columns()
    ]

  def zero(self) -> Array:
    """A zero that the compiler does not know: what is computed from it, like the
    descriptors of operands, cannot be moved out of the loop over chunks, where it
    would take all registers."""
    return self._zero[0]

  def place(self, i: int, layer: int, panel: int) -> int:
    """Returns the byte of the rests that is a layer's of its i-th tile."""
    return (2 * i + layer) * self._shape.panels + panel

  def fetch_state(self, state: shapes.State, came) -> Array:
    """Brings the head's state; `came` is its barrier."""

    @self.leads
    def _():
      z0 = self.zero()
      for here, there in self._pairs(state):
        for t in range(self._shape.tiles_per_block):
          tiles.plgpu.copy_gmem_to_smem(
              there.at[self.instance, self.place_of(t + z0)],
              here.at[t + z0],
              came,
          )

    tiles.plgpu.barrier_wait(came)
    rests = jnp.zeros((tiles.TILE, self._shape.panel), jnp.int32)
    for t, layer, columns, place in self._pieces():
      rounded = self._held[layer][t + self.zero(), :, columns]
      x = rounded.astype(jnp.float32)
      # Without a rest likewise: the loop's rests have the products' layout.
      if state.rest:
        rest = state.rest[layer].at[self.instance, self.place_of(t), :, columns]
        x += tiles.load(rest).astype(jnp.float32)
      (rests,) = tiles.packed(tiles.with_rest(rests, place, x, rounded))
    return rests

  def restart(self, initial: shapes.State, came) -> Array:
    """Brings another state in place of what is held; `came` is its barrier."""
    # Nobody may still wait for the state before: a barrier knows but two.
    self.sync()
    return self.fetch_state(initial, came)

  def store(
      self,
      target: shapes.State,
      rests: Array,
      zero: Array | int = 0,
  ) -> None:
    """Writes the state to main memory when all is done.

    Args:
      target: references there.
      rests: of the warpgroup's tiles.
      zero: as of `store_rounded`.
    """
    self.leads(lambda: self.store_rounded(target, (self.instance,), zero))
    tiles.plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    self.sync()

    def left(rounded, rests, place):
      x = tiles.whole(rounded, rests, place) - rounded.astype(jnp.float32)
      return x.astype(self._shape.dtype)

    # Rests go out through the places of W.
    weights = self._held[:2]
    for t, layer, columns, place in self._pieces():
      t += self.zero()
      weights[layer][t, :, columns] = tiles.columns(
          functools.partial(left, place=place),
          weights[layer][t, :, columns],
          rests,
      )
    tiles.plgpu.commit_smem()
    z0 = self.zero()
    for t in self.own:
      for here, there in zip(weights, target.rest):
        tiles.plgpu.copy_smem_to_gmem(
            here.at[t + z0], there.at[self.instance, self.place_of(t + z0)]
        )
    tiles.plgpu.wait_smem_to_gmem(0)

  def store_rounded(self, target, where, zero: Array | int = 0) -> None:
    """Starts to write W and S as they are in shared memory.

    Args:
      target: references in main memory.
      where: place in the leading axes.
      zero: a known one, which spares the forward kernel registers, or one that
        the compiler does not know, which spares the backward kernel some.
    """
    for here, there in self._pairs(target):
      for t in range(self._shape.tiles_per_block):
        tiles.plgpu.copy_smem_to_gmem(
            here.at[t + zero], there.at[*where, self.place_of(t)]
        )

  def _pieces(self):
    """Yields the warpgroup's pieces of W: tile, layer, columns, and byte."""
    for i, t in enumerate(self.own):
      for layer in range(2):
        for panel, columns in enumerate(self._shape.columns()):
          yield t, layer, columns, self.place(i, layer, panel)

  def _pairs(self, other):
    return zip(self._held, (*other.weights, *other.momentum))


def meeting(shape: shapes.Shape) -> Meeting:
  """Returns the barriers of a block, and of a cluster."""
  everyone = tiles.plgpu.Barrier(num_arrivals=shape.warpgroups)
  leaders = None
  if shape.blocks > 1:
    leaders = tiles.plgpu.ClusterBarrier(
        collective_axes=("block",), num_barriers=2
    )
  return Meeting(everyone, leaders)


def shared_bytes(shape: shapes.Shape, buffers: Any, barriers: int) -> int:
  """Returns the shared memory of buffers, and of barriers beside a `Meeting`'s."""
  meeting = 1 if shape.blocks == 1 else 3
  return tiles.shared_bytes(buffers, barriers + meeting)


def shared_type(shape: shapes.Shape, count: int, *sizes: int):
  """Returns the type of what `Block.total` goes through, or None.

  Args:
    shape: sizes.
    count: of arrays that are added at once.
    *sizes: of each.
  """
  if shape.blocks == 1:
    return None
  return jax.ShapeDtypeStruct(
      (shape.instances, 2, shape.blocks, count, *sizes), jnp.float32
  )


def launch(
    kernel: Callable[..., None],
    name: str,
    shape: shapes.Shape,
    inputs: Any,
    results: Any,
    scratch: Any,
    interpret: Any,
) -> Any:
  """Runs a kernel, a block or a cluster of blocks for every instance.

  Args:
    kernel: (shape, interpreted, inputs, results, scratch) -> None, of references.
    name: of the kernel.
    shape: sizes.
    inputs: pytree of arrays in main memory.
    results: pytree of the types of what it writes there.
    scratch: pytree of buffers and barriers.
    interpret: `plgpu.InterpretGPUParams`; None: compiled.
  """
  trees = (inputs, results, scratch)
  counts = [len(jax.tree.leaves(tree)) for tree in trees]

  def body(*refs):
    refs, parts = iter(refs), []
    for tree, count in zip(trees, counts):
      leaves = [next(refs) for _ in range(count)]
      parts.append(jax.tree.unflatten(jax.tree.structure(tree), leaves))
    kernel(shape, bool(interpret), *parts)

  body.__name__ = name
  cluster = {}
  if shape.blocks > 1:
    cluster = {"cluster": (shape.blocks,), "cluster_names": ("block",)}
  run = tiles.plgpu.kernel(
      body,
      out_type=jax.tree.leaves(results),
      scratch_types=jax.tree.leaves(scratch),
      grid=(shape.instances,),
      grid_names=("instance",),
      num_threads=shape.warpgroups,
      thread_name="group",
      **cluster,
      compiler_params=tiles.plgpu.CompilerParams(
          approx_math=True, reduction_scratch_bytes=0
      ),
      **({"interpret": interpret} if interpret else {}),
  )
  leaves = run(*jax.tree.leaves(inputs))
  return jax.tree.unflatten(jax.tree.structure(results), leaves)
