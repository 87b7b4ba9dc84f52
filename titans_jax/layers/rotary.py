# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding that stays exact at any position."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.memory import products

Array = jax.Array

# A float32 product of position and frequency is off by up to 0.5 rad at
# position ten million. Written in digits of this base, each digit's angle is
# reduced by whole turns beforehand, in float64.
_BASE = 256
_DIGITS = 4  # int32 positions


def _digit_angles(head_dim: int, theta: float) -> np.ndarray:
  """Returns base**digit * frequency modulo 2 pi, float64 [digits, D / 2]."""
  exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
  frequencies = theta**-exponents
  scales = np.float64(_BASE) ** np.arange(_DIGITS)
  return np.remainder(scales[:, None] * frequencies, 2 * np.pi)


def rotate(x: Array, positions: Array, theta: float) -> Array:
  """Rotates pairs of channels by their position times a frequency.

  Args:
    x: [B, T, H, D]; channel i is paired with channel i + D / 2.
    positions: int32 [B or 1, T].
    theta: base of the frequencies theta**(-2 i / D).

  Returns:
    [B, T, H, D] in the dtype of x; angles are off by less than 1e-3 rad in
    float32 at any int32 position.
  """
  dtype = products.at_least_float32(x.dtype)
  table = jnp.asarray(_digit_angles(x.shape[-1], theta), dtype)
  shifts = jnp.arange(_DIGITS) * (_BASE.bit_length() - 1)
  digits = (positions[..., None] >> shifts) & (_BASE - 1)
  # Not a matrix product: the matrix unit would round the digits' angles.
  angles = jnp.sum(digits.astype(dtype)[..., None] * table, axis=-2)
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  first, second = jnp.split(x.astype(dtype), 2, axis=-1)
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
