# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The feed-forward layer of Llama-style blocks (NeurIPS section 3.3)."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from titans_jax.layers import linear

Array = jax.Array


class SwiGLU(nn.Module):
  """W_down (SiLU(x W_gate) * x W_up), without biases.

  Attributes:
    hidden: width between.
    dtype: of the computation.
    param_dtype: of the parameters.
    out_scale: scale of the last projection's initial deviation.
  """

  hidden: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  out_scale: float = 1.0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [..., d] to [..., d]."""
    gate = linear.dense(self.hidden, self, "gate")(x)
    up = linear.dense(self.hidden, self, "up")(x)
    down = linear.dense(x.shape[-1], self, "down", scale=self.out_scale)
    return down(nn.silu(gate) * up)
