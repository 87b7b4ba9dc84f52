# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Causal attention behind a prefix on TPU, by JAX's splash kernels.

One kernel attends to the prefix, one to the sequence, and `joint` makes of both
one softmax; for that their backward kernels are called here by hand.

The alternative is one kernel over twice the channels, [rotated | unrotated]. It
costs the same up to D = 64, where half of the matrix unit would idle, but 40%
more at D = 128 (bundles that the compiler schedules on v5p, all three kernels).
And it has no place for documents: their segment ids would hide the prefix.
"""

from __future__ import annotations

from concurrent import futures
import functools
from typing import NamedTuple, Sequence

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask,
)
import jax.numpy as jnp
import numpy as np

from titans_jax.layers import joint

Array = jax.Array

_TILE = 128
_NO_DOCUMENT = np.iinfo(np.int32).min


def why_not(queries: Array) -> str | None:
  """Returns why the kernels do not suit queries [B, T, H, D]; None: they do.

  Any number of tokens from one tile on and any head dimension suit them: tokens
  are padded to whole blocks, and Mosaic masks channels.
  """
  if queries.dtype == jnp.float64:
    return "the kernels accumulate in float32, and the queries are float64"
  if queries.shape[1] < _TILE:
    return f"{queries.shape[1]} queries do not fill a tile of {_TILE}"
  if jax.config.jax_enable_x64:
    return "the kernels do not lower in 64-bit mode (jax_enable_x64)"
  return None


def attend(
    queries: Array,
    rotated: Array,
    prefix: tuple[Array, Array],
    parts: Sequence[tuple[Array, Array]],
    positions: Array | None = None,
    *,
    window: int,
    interpret: bool = False,
) -> Array:
  """`attention.attend_causally` by TPU kernels; same arguments and results.

  Batch rows and heads are independent of each other: under a mesh, wrap the
  call in `jax.shard_map` over axis 0 (but not the prefix's) and axis 2.
  """
  _, length, num_heads, head_dim = queries.shape
  sizes = {
      "num_heads": num_heads,
      "queries": length,
      "interpret": interpret,
  }
  size, count = parts[0][0].shape[1], len(parts)
  ids = None
  if positions is not None:
    ids = _document_ids(positions, size, count)

  def heads_first(x):
    return jnp.swapaxes(x, 1, 2)

  def pair(queries, keys_values, ids=None):
    queries = heads_first(queries) * head_dim**-0.5
    return joint.Inputs(queries, *map(heads_first, keys_values), ids)

  sequence = [jnp.concatenate(x, axis=1) for x in zip(*parts)]
  kernels = [_Kernel(keys=count * size, window=window, parts=count, **sizes)]
  inputs = [pair(rotated, sequence, ids)]
  if prefix[0].shape[1]:
    kernels.append(_Kernel(keys=prefix[0].shape[1], **sizes))
    inputs.append(pair(queries, prefix))
  outputs = joint.attend(tuple(kernels), tuple(inputs))
  return heads_first(outputs)


def _document_ids(positions: Array, size: int, parts: int):
  """Returns ids of queries [B, T] and of keys [B, parts * S], alike in a
  document: the place of its first token, counted from the first query."""
  length = positions.shape[1]
  first = jnp.arange(length, dtype=jnp.int32) - positions
  # Keys in front are of the first query's document, or of none that counts.
  places = jnp.arange(length - size, length, dtype=jnp.int32)
  begins = jnp.pad(first, [(0, 0), (size - length, 0)], mode="edge")
  keys = jnp.where(places >= begins, begins, _NO_DOCUMENT)
  return first, jnp.tile(keys, parts)


class _Kernel(NamedTuple):
  """splash's kernel for some sizes; inputs have heads first, and queries are
  scaled. window None: every query sees every key."""

  num_heads: int
  queries: int
  keys: int
  interpret: bool
  window: int | None = None
  parts: int = 1

  def sees(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
    real = key < self.keys
    if self.window is None:
      return np.broadcast_to(real, np.broadcast_shapes(query.shape, key.shape))
    size = self.keys // self.parts
    behind = query + (size - self.queries) - key % size
    return real & (behind >= 0) & (behind < self.window)

  def forward(self, inputs: joint.Inputs) -> tuple[Array, Array]:
    return _rows(functools.partial(_forward, self), inputs)

  def backward(self, inputs, outputs, z, cotangent):
    run = functools.partial(_backward, self)
    return _rows(run, inputs, outputs, z, cotangent, like=inputs[:3])

  def per_query(self, z: Array) -> Array:
    return z[..., None]


class _Mask(splash_mask.Mask):
  """A kernel's mask, computed block by block."""

  def __init__(self, size: tuple[int, int], kernel: _Kernel):
    self._size = size
    self._kernel = kernel

  @property
  def shape(self) -> tuple[int, ...]:
    return self._size

  def __getitem__(self, index) -> np.ndarray:
    query, key = (np.arange(n)[i] for n, i in zip(self._size, index))
    return self._kernel.sees(query[:, None], key[None])


def _block(size: int) -> int:
  """The largest block that does not pad by more than an eighth, or a tile."""
  return next(
      block
      for block in (4 * _TILE, 2 * _TILE, _TILE)
      if block == _TILE or -size % block <= size // 8
  )


@functools.lru_cache(maxsize=128)
def _compiled(shape: _Kernel):
  """Returns the kernel with its blocks, for whole blocks of tokens."""
  query_block, key_block = _block(shape.queries), _block(shape.keys)
  mask = _Mask(
      (
          shape.queries + -shape.queries % query_block,
          shape.keys + -shape.keys % key_block,
      ),
      shape,
  )

  def make():
    kernel = splash_kernel.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * shape.num_heads),
        block_sizes=splash_kernel.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
            block_q_dq=query_block,
            block_kv_dq=key_block,
        ),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=True,
        interpret=shape.interpret,
    )
    # Held for any device that a program is compiled for.
    return jax.tree.map(np.asarray, kernel)

  # splash makes arrays of its masks. A thread of its own sees neither the trace
  # nor the mesh around this call, whose devices may be out of reach.
  with futures.ThreadPoolExecutor(1) as thread:
    return thread.submit(make).result(), mask.shape


def _rows(function, inputs: joint.Inputs, *args, like=None):
  """Maps function over batch rows; what has one row serves all, and so its
  gradient, where `like` names arguments, is the sum over all."""
  batch = inputs.queries.shape[0]
  args = (*inputs, *args)
  shared = jax.tree.map(lambda x: x.shape[0] < batch, args)
  outputs = jax.vmap(
      function, in_axes=jax.tree.map(lambda one: None if one else 0, shared)
  )(*jax.tree.map(lambda one, x: x[0] if one else x, shared, args))
  if like is None:
    return outputs
  return [
      y if y.shape == x.shape else jnp.sum(y, axis=0, keepdims=True)
      for y, x in zip(outputs, like)
  ]


def _pad(x: Array, size: int, axis: int) -> Array:
  pad = [(0, 0)] * x.ndim
  pad[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, pad)


def _padded(size, queries, keys, values, ids):
  """Pads one row's inputs [H, T or S, D] to the kernel's size."""
  if ids is not None:
    ids = splash_kernel.SegmentIds(*(_pad(x, n, 0) for x, n in zip(ids, size)))
  keys, values = (_pad(x, size[1], 1) for x in (keys, values))
  return _pad(queries, size[0], 1), keys, values, ids


def _forward(shape, *row):
  """Returns [H, T, D] and the log-sum-exps of the scores, float32 [H, T]."""
  kernel, size = _compiled(shape)
  *qkv, ids = _padded(size, *row)
  outputs, (total,) = kernel(*qkv, segment_ids=ids)
  return outputs[:, : shape.queries], total[:, : shape.queries]


def _backward(shape, queries, keys, values, ids, *results):
  """Returns the gradients by queries, keys and values of one row."""
  kernel, size = _compiled(shape)
  # Zeros as the cotangent make padded queries count for nothing.
  outputs, total, cotangent = (_pad(x, size[0], 1) for x in results)
  *qkv, ids = _padded(size, queries, keys, values, ids)
  options = kernel.kwargs
  # splash's public interface has no backward pass by itself.
  gradients = splash_kernel._splash_attention_bwd(  # pylint: disable=protected-access
      False,
      options["mask_value"],
      options["is_mqa"],
      options["block_sizes"],
      options["residual_checkpoint_name"],
      options["mask_function"],
      options["attn_logits_soft_cap"],
      options["interpret"],
      (
          *qkv,
          ids,
          None,
          outputs,
          total,
          kernel.dq_mask_info,
          kernel.dkv_mask_info,
      ),
      cotangent,
  )
  return tuple(
      x[:, : like.shape[1]]
      for x, like in zip(gradients[3:6], (queries, keys, values))
  )
