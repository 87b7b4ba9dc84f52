# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy that never holds the logits of a whole batch."""

from __future__ import annotations

import functools
from typing import Callable

import jax
import jax.numpy as jnp

from titans_jax.memory import products
from titans_jax.memory import sharding

Array = jax.Array

# Logits that a device holds at a time, in numbers: 64 MiB in float32.
_MAX_LOGITS = 2**24


def cross_entropy(
    hidden: Array,
    targets: Array,
    weights: Array,
    matrix: Array,
    logits_fn: Callable[[Array, Array], Array],
) -> tuple[Array, Array, Array]:
  """Sums the loss over scored tokens, in blocks of time.

  Args:
    hidden: [B, T, d].
    targets: int32 [B, T], any value where the weight is zero.
    weights: [B, T], 1 for a scored token, else 0.
    matrix: [V, d].
    logits_fn: maps [B, t, d] and the matrix to [B, t, V].

  Returns:
    Sums over scored tokens of -log p(target) in nats, of log(Z)**2, and of
    correct most likely tokens; scalars in at least float32.
  """
  targets = jnp.where(weights > 0, targets, 0)
  return sharding.sum_over_rows(
      functools.partial(_sums, logits_fn), (hidden, targets, weights), matrix
  )


def _sums(logits_fn, rows, matrix):
  hidden, targets, weights = rows
  batch, length, _ = hidden.shape
  vocab_size = matrix.shape[0]
  held = sharding.shard_size(batch, vocab_size)
  block = max(1, min(length, _MAX_LOGITS // held))
  block = -(-length // -(-length // block))  # as many blocks, of equal length

  def of_block(hidden, targets, weights):
    logits = logits_fn(hidden, matrix)
    logits = logits.astype(products.at_least_float32(logits.dtype))
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    correct = jnp.argmax(logits, axis=-1) == targets
    return (
        jnp.sum((log_z - chosen) * weights),
        jnp.sum(log_z * log_z * weights),
        jnp.sum(correct * weights),
    )

  if block == length:
    return of_block(hidden, targets, weights)
  pad = -length % block

  def blocks(x):
    x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(batch, -1, block, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  def body(sums, xs):
    return jax.tree.map(jnp.add, sums, of_block(*xs)), None

  # A block's logits are made again in the backward pass.
  dtype = products.at_least_float32(hidden.dtype)
  zeros = (jnp.zeros((), dtype),) * 3
  xs = tuple(map(blocks, (hidden, targets, weights.astype(dtype))))
  body = jax.checkpoint(body, prevent_cse=False)
  return jax.lax.scan(body, zeros, xs)[0]
