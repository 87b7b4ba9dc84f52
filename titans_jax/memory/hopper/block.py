# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Blocks of threads: what their warpgroups share, and how they are started."""

from __future__ import annotations

import functools
from typing import Any, Callable, Sequence

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from titans_jax.memory.hopper import shapes
from titans_jax.memory.hopper import tiles

Array = jax.Array


class Block:
  """What a warpgroup of a kernel knows of its block.

  The head's W and S are in shared memory; what rounding left of W is in the
  registers of the warpgroup that owns the tile, a byte of an int32 [64, D] for
  each of its tiles and layers ("rests").

  Attributes:
    instance: the head.
    own: numbers of the warpgroup's tiles.
    is_leader: whether it is the one that does what is done to whole rows.
  """

  def __init__(self, shape: shapes.Shape, held, everyone, zero):
    """Takes what a kernel was given.

    Args:
      shape: sizes.
      held: references in shared memory, W and S of both layers.
      everyone: barrier of all warpgroups.
      zero: reference to a zero in main memory.
    """
    self._shape, self._held = shape, (*held[0], *held[1])
    self._everyone, self._zero = everyone, zero
    self.instance = jax.lax.axis_index("instance")
    group = jax.lax.axis_index("group")
    first = group * shape.tiles_per_group
    self.own = [first + i for i in range(shape.tiles_per_group)]
    self.is_leader = group == 0

  def leads(self, fn: Callable[[], None]) -> None:
    """Runs what is the leader's."""
    pl.when(self.is_leader)(fn)

  def sync(self) -> None:
    """Waits for all warpgroups, and lets them read what this one wrote."""
    tiles.plgpu.commit_smem()
    tiles.plgpu.barrier_arrive(self._everyone)
    tiles.plgpu.barrier_wait(self._everyone)

  def zero(self) -> Array:
    """A zero that the compiler does not know: what is computed from it, like the
    descriptors of operands, cannot be moved out of the loop over chunks, where it
    would take all registers."""
    return self._zero[0]

  def place(self, i: int, layer: int) -> int:
    """Returns the byte of the rests that is a layer's of its i-th tile."""
    return 2 * i + layer

  def fetch_state(self, state: shapes.State, came) -> Array:
    """Brings the head's state; `came` is its barrier."""

    @self.leads
    def _():
      z0 = self.zero()
      for here, there in self._pairs(state):
        for t in range(self._shape.tiles):
          tiles.plgpu.copy_gmem_to_smem(
              there.at[self.instance, t + z0], here.at[t + z0], came
          )

    tiles.plgpu.barrier_wait(came)
    rests = jnp.zeros((tiles.TILE, self._shape.width), jnp.int32)
    for i, t in enumerate(self.own):
      for layer in range(2):
        rounded = self._held[layer][t + self.zero()]
        x = rounded.astype(jnp.float32)
        # Without a rest likewise: the loop's rests have the products' layout.
        if state.rest:
          rest = tiles.load(state.rest[layer].at[self.instance, t])
          x += rest.astype(jnp.float32)
        (rests,) = tiles.packed(
            tiles.with_rest(rests, self.place(i, layer), x, rounded)
        )
    return rests

  def restart(self, initial: shapes.State, came) -> Array:
    """Brings another state in place of what is held; `came` is its barrier."""
    # Nobody may still wait for the state before: a barrier knows but two.
    self.sync()
    return self.fetch_state(initial, came)

  def store(
      self,
      target: shapes.State,
      where,
      rests: Array,
      outlets: Sequence[Any],
      zero: Array | int = 0,
  ) -> None:
    """Starts to write the state to main memory; W and S have to be waited for.

    Args:
      target: references there.
      where: place in the leading axes.
      rests: of the warpgroup's tiles.
      outlets: of each layer, a buffer through which its rest goes.
      zero: as of `store_rounded`.
    """
    width = self._shape.width

    def left(rounded, rests, place):
      x = tiles.whole(rounded, rests, place) - rounded.astype(jnp.float32)
      return x.astype(self._shape.dtype)

    for i, t in enumerate(self.own):
      for layer, here in enumerate(outlets):
        there = t + self.zero()
        here[there, :, :width] = tiles.columns(
            functools.partial(left, place=self.place(i, layer)),
            self._held[layer][there],
            rests,
        )
    tiles.plgpu.commit_smem()
    z0 = self.zero()
    for t in self.own:
      for here, there in zip(outlets, target.rest):
        tiles.plgpu.copy_smem_to_gmem(here.at[t + z0], there.at[*where, t + z0])
    tiles.plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    self.leads(lambda: self.store_rounded(target, where, zero))

  def store_rounded(self, target, where, zero: Array | int = 0) -> None:
    """Starts to write W and S as they are in shared memory.

    Args:
      target: references in main memory.
      where: place in the leading axes.
      zero: a known one, which spares the forward kernel registers, or one that
        the compiler does not know, which spares the backward kernel some.
    """
    for here, there in self._pairs(target):
      for t in range(self._shape.tiles):
        tiles.plgpu.copy_smem_to_gmem(here.at[t + zero], there.at[*where, t])

  def _pairs(self, other):
    return zip(self._held, (*other.weights, *other.momentum))


def launch(
    kernel: Callable[..., None],
    name: str,
    shape: shapes.Shape,
    inputs: Any,
    results: Any,
    scratch: Any,
    interpret: Any,
) -> Any:
  """Runs a kernel, a block of threads for every instance.

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
  run = tiles.plgpu.kernel(
      body,
      out_type=jax.tree.leaves(results),
      scratch_types=jax.tree.leaves(scratch),
      grid=(shape.instances,),
      grid_names=("instance",),
      num_threads=shape.warpgroups,
      thread_name="group",
      compiler_params=tiles.plgpu.CompilerParams(
          approx_math=True, reduction_scratch_bytes=0
      ),
      **({"interpret": interpret} if interpret else {}),
  )
  leaves = run(*jax.tree.leaves(inputs))
  return jax.tree.unflatten(jax.tree.structure(results), leaves)
