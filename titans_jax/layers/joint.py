# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One softmax over the keys of several attention kernels.

Queries meet a prefix unrotated and the sequence rotated, so no single query will
do for both. Each is given to a kernel of its own, with the queries that it needs,
and the softmaxes become one by their log-sum-exps:

    o = sum_i exp(z_i - z) o_i,     z = log sum_i exp(z_i)

Backward, a kernel computes the weights exp(score - z) from a saved z, and the
rest from o and its cotangent. Given the *joint* o and z it returns the joint
softmax's own gradient: nothing is differentiated through z_i, which kernels do
not support.
"""

from __future__ import annotations

import functools
from typing import Any, Hashable, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array


class Inputs(NamedTuple):
  """What a kernel attends with, in the order of axes that it wants.

  Attributes:
    queries: of the layout [B, H, T, D] or [B, T, H, D].
    keys: [B or 1, H, S, D], or the other order.
    values: likewise.
    aux: what is not differentiated, such as ids of documents.
  """

  queries: Array
  keys: Array
  values: Array
  aux: Any = None


class Kernel(Hashable, Protocol):
  """An attention kernel, whose log-sum-exps z are float32 [B, H, T]."""

  def forward(self, inputs: Inputs) -> tuple[Array, Array]:
    """Returns outputs, like the queries, and z."""

  def backward(
      self, inputs: Inputs, outputs: Array, z: Array, cotangent: Array
  ) -> tuple[Array, Array, Array]:
    """Returns the gradients by queries, keys and values."""

  def per_query(self, z: Array) -> Array:
    """Lays [B, H, T] out along queries, with a last axis of one."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(kernels: tuple[Kernel, ...], inputs: tuple[Inputs, ...]) -> Array:
  """Returns outputs, like the queries: one softmax over the keys of all inputs.

  Args:
    kernels: one for each of the inputs.
    inputs: of the same batch and queries.
  """
  return _forward(kernels, inputs)[0]


def _forward(kernels, inputs):
  results = [kernel.forward(x) for kernel, x in zip(kernels, inputs)]
  if len(results) == 1:
    ((outputs, total),) = results
  else:
    total = functools.reduce(jnp.logaddexp, (z for _, z in results))
    weighted = (
        kernel.per_query(jnp.exp(z - total)) * y
        for kernel, (y, z) in zip(kernels, results)
    )
    outputs = sum(weighted).astype(inputs[0].queries.dtype)
  return outputs, (inputs, outputs, total)


def _backward(kernels, saved, cotangent):
  inputs, *joint = saved
  return (
      tuple(
          Inputs(*kernel.backward(x, *joint, cotangent))
          for kernel, x in zip(kernels, inputs)
      ),
  )


attend.defvjp(_forward, _backward)
