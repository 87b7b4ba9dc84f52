# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Projections and norms, made alike everywhere."""

from __future__ import annotations

from flax import linen as nn


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
  return nn.RMSNorm(
      epsilon=1e-6,
      dtype=module.dtype,
      param_dtype=module.param_dtype,
      name=name,
      **kwargs,
  )
