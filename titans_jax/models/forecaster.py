# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The neural memory as a forecaster of multivariate time series (v1 section 5.5).

The paper takes Simba's framework and puts its memory in the place of Mamba. Here
a window goes

    normalise  every channel by the window's own mean and deviation
    season     less a learned cycle of the calendar, per channel
    trend      one linear map from look-back to horizon, shared by the channels
    memory     plus what the blocks read from the window's patches, per channel

and back. The channels are read apart, by the same blocks, which is what is robust
on series with few rows; Simba mixes them.
"""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from titans_jax.layers import linear
from titans_jax.models import blocks
from titans_jax.models import config as config_lib

Array = jax.Array

_EPSILON = 1e-5


class Forecaster(nn.Module):
  """Forecasts a window's future from its past.

  Attributes:
    config: of the blocks; `vocab_size` is not used.
    look_back: L, steps that are seen.
    horizon: steps that are forecast.
    channels: C.
    period: steps of the calendar's cycle.
    patch_length: steps that make a token, a divisor of L.
    huber_delta: where the loss goes over from squares to absolute values, in
      deviations of the training data.
  """

  config: config_lib.TitansConfig
  look_back: int
  horizon: int
  channels: int
  period: int
  patch_length: int = 8
  huber_delta: float = 0.5

  def setup(self):
    config = self.config
    if self.look_back % self.patch_length:
      raise ValueError(
          f"patch_length={self.patch_length} does not divide"
          f" look_back={self.look_back}."
      )
    zeros = nn.initializers.zeros_init()
    self.cycle = self.param(
        "cycle", zeros, (self.period, self.channels), config.param_dtype
    )
    dtypes: dict[str, Any] = {
        "dtype": config.dtype,
        "param_dtype": config.param_dtype,
    }
    # Every forecast starts as the mean of what was seen.
    mean = nn.initializers.constant(1 / self.look_back)
    self.trend = nn.Dense(self.horizon, kernel_init=mean, **dtypes)
    self.patch = nn.Dense(config.model_dim, **dtypes)
    self.place = self.param(
        "place",
        nn.initializers.normal(0.1),
        (self.look_back // self.patch_length, config.model_dim),
        config.param_dtype,
    )
    self.blocks = blocks.Block(config)
    self.final_norm = linear.rms_norm(config)
    self.head = nn.Dense(self.horizon, kernel_init=zeros, **dtypes)

  def __call__(
      self, history: Array, phase: Array, weights: Array | None = None
  ) -> Array:
    """Forecasts.

    Args:
      history: scaled values, [B, L, C].
      phase: int32 [B, L + horizon], where in the period each step stands.
      weights: [B, L, C], by which what remains of a step without mean and season
        is multiplied (mean and deviation are of all steps); None: ones.

    Returns:
      [B, horizon, C].
    """
    batch, length, channels = history.shape
    season = self.cycle[phase]
    mean = jnp.mean(history, axis=1, keepdims=True)
    deviation = jnp.sqrt(jnp.var(history, axis=1, keepdims=True) + _EPSILON)
    x = (history - mean) / deviation - season[:, :length]
    if weights is not None:
      x = x * weights.astype(x.dtype)
    x = jnp.swapaxes(x, 1, 2).reshape(batch * channels, length)
    patches = x.reshape(batch * channels, -1, self.patch_length)
    tokens = self.patch(patches) + self.place
    read, _ = blocks.read_fresh(self.blocks, tokens, self.config)
    read = self.final_norm(read).reshape(batch * channels, -1)
    y = self.trend(x) + self.head(read)
    y = jnp.swapaxes(y.reshape(batch, channels, self.horizon), 1, 2)
    return (y + season[:, length:]) * deviation + mean

  def loss(
      self,
      history: Array,
      phase: Array,
      future: Array,
      weights: Array | None = None,
  ) -> tuple[Array, dict[str, Any], None]:
    """Returns the mean Huber loss of a batch.

    Args:
      history: [B, L, C].
      phase: int32 [B, L + horizon].
      future: [B, horizon, C].
      weights: [B, L, C], as in `__call__`.

    Returns:
      The loss; metrics: `num_tokens`, the values forecast; and no state.
    """
    error = optax.losses.huber_loss(
        self(history, phase, weights), future, delta=self.huber_delta
    )
    return _mean(error)

  def init_inputs(self) -> dict[str, Array]:
    """Returns arguments for `init`."""
    return _init_inputs(self.look_back, self.horizon, self.channels)


class DLinear(nn.Module):
  """The linear baseline: trend and rest of a window, each mapped linearly.

  Zeng et al., "Are Transformers Effective for Time Series Forecasting?" (2023),
  with maps shared by the channels and trained on squares.

  Attributes:
    look_back: steps that are seen.
    horizon: steps that are forecast.
    channels: C.
    average: steps of the moving average that is the trend.
  """

  look_back: int
  horizon: int
  channels: int
  average: int = 25

  def setup(self):
    if self.average % 2 == 0:
      raise ValueError(f"average must be odd, got {self.average}.")
    mean = nn.initializers.constant(1 / self.look_back)
    self.trend = nn.Dense(self.horizon, kernel_init=mean)
    self.rest = nn.Dense(self.horizon, kernel_init=mean)

  def __call__(self, history: Array, phase: Array) -> Array:
    """Forecasts, as `Forecaster`; the phase is not used."""
    del phase
    x = jnp.swapaxes(history, 1, 2)
    half = (self.average - 1) // 2
    padded = jnp.pad(x, ((0, 0), (0, 0), (half, half)), mode="edge")
    sums = jnp.cumsum(jnp.pad(padded, ((0, 0), (0, 0), (1, 0))), axis=-1)
    trend = (sums[..., self.average :] - sums[..., : -self.average]) / (
        self.average
    )
    return jnp.swapaxes(self.trend(trend) + self.rest(x - trend), 1, 2)

  def loss(
      self, history: Array, phase: Array, future: Array
  ) -> tuple[Array, dict[str, Any], None]:
    """Returns half the mean square error; all steps are seen (data.dropout is 0),
    else as `Forecaster.loss`."""
    return _mean(optax.losses.l2_loss(self(history, phase), future))

  def init_inputs(self) -> dict[str, Array]:
    """Returns arguments for `init`."""
    return _init_inputs(self.look_back, self.horizon, self.channels)


def _init_inputs(
    look_back: int, horizon: int, channels: int
) -> dict[str, Array]:
  return {
      "history": jnp.zeros((1, look_back, channels)),
      "phase": jnp.zeros((1, look_back + horizon), jnp.int32),
  }


def _mean(error: Array) -> tuple[Array, dict[str, Any], None]:
  count = jnp.asarray(error.size, jnp.int32)
  return jnp.mean(error), {"num_tokens": count}, None
