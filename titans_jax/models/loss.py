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


def token_losses(
    hidden: Array,
    targets: Array,
    matrix: Array,
    logits_fn: Callable[[Array, Array], Array],
) -> tuple[Array, Array]:
  """Returns every token's loss, in blocks of time.

  Args:
    hidden: [B, T, d].
    targets: int32 [B, T].
    matrix: [V, d].
    logits_fn: as in `cross_entropy`.

  Returns:
    -log p(target) in nats, [B, T] in at least float32, and whether the target
    is the most likely token, bool [B, T].
  """

  def of_block(block):
    nats, _, correct = _of_tokens(logits_fn, *block, matrix)
    return nats, correct

  blocks, join = _in_blocks((hidden, targets), matrix.shape[0])
  if blocks is None:
    return of_block((hidden, targets))
  return jax.tree.map(join, jax.lax.map(of_block, blocks))


def _of_tokens(logits_fn, hidden, targets, matrix):
  """Returns -log p(target), log(Z) and whether the target is the likeliest."""
  logits = logits_fn(hidden, matrix)
  logits = logits.astype(products.at_least_float32(logits.dtype))
  log_z = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return log_z - chosen, log_z, jnp.argmax(logits, axis=-1) == targets


def _in_blocks(rows, vocab_size: int):
  """Cuts rows [B, T, ...] into blocks of time whose logits can be held.

  Returns:
    Leaves [N, B, t, ...], zeros behind the last token (None where one block is
    enough), and what joins values [N, B, t] to [B, T].
  """
  batch, length = rows[0].shape[:2]
  held = sharding.shard_size(batch, vocab_size)
  block = max(1, min(length, _MAX_LOGITS // held))
  block = -(-length // -(-length // block))  # as many blocks, of equal length
  pad = -length % block

  def cut(x):
    x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(batch, -1, block, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  def join(x):
    return jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :length]

  return None if block == length else tuple(map(cut, rows)), join


def _sums(logits_fn, rows, matrix):
  hidden, targets, weights = rows

  def of_block(hidden, targets, weights):
    nats, log_z, correct = _of_tokens(logits_fn, hidden, targets, matrix)
    return (
        jnp.sum(nats * weights),
        jnp.sum(log_z * log_z * weights),
        jnp.sum(correct * weights),
    )

  dtype = products.at_least_float32(hidden.dtype)
  blocks, _ = _in_blocks(
      (hidden, targets, weights.astype(dtype)), matrix.shape[0]
  )
  if blocks is None:
    return of_block(hidden, targets, weights)

  def body(sums, xs):
    return jax.tree.map(jnp.add, sums, of_block(*xs)), None

  # A block's logits are made again in the backward pass.
  zeros = (jnp.zeros((), dtype),) * 3
  body = jax.checkpoint(body, prevent_cse=False)
  return jax.lax.scan(body, zeros, blocks)[0]
