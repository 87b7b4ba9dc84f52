# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Projections and norms, made alike everywhere."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from titans_jax.layers import recompute

Array = jax.Array


def dense(features: int, module, name: str | None = None, scale: float = 1.0):
  """Returns a projection without bias in the dtypes of `module`."""
  return nn.Dense(
      features,
      use_bias=False,
      dtype=module.dtype,
      param_dtype=module.param_dtype,
      kernel_init=nn.initializers.variance_scaling(
          scale**2, "fan_in", "truncated_normal"
      ),
      name=name,
  )


def rms_norm(module, name: str | None = None, **kwargs):
  """Returns an RMSNorm in the dtypes of `module`."""
  return recompute.light(nn.RMSNorm)(
      epsilon=1e-6,
      dtype=module.dtype,
      param_dtype=module.param_dtype,
      name=name,
      **kwargs,
  )


class TwinDense(nn.Module):
  """Two projections without bias that start with the same kernel.

  For queries and keys: a token then starts by attending to itself and its
  likes, not to all tokens alike. Where the answer passes through attention on
  its way (MAC, MAL), averaging over the window hides it from the gradient, and
  associative recall was not learned in the steps in which it now is.

  Attributes:
    features: width of each projection.
    dtype: of the computation.
    param_dtype: of the kernel.
  """

  features: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, which: int) -> Array:
    """Applies projection 0 or 1 to [..., d]."""

    def init(key, shape, dtype):
      single = nn.initializers.variance_scaling(
          1.0, "fan_in", "truncated_normal"
      )
      return jnp.broadcast_to(single(key, shape[1:], dtype), shape)

    shape = (2, x.shape[-1], self.features)
    kernel = self.param("kernel", init, shape, self.param_dtype)
    return x.astype(self.dtype) @ kernel[which].astype(self.dtype)
