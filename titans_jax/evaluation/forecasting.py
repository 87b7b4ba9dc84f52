# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Forecasting of time series, for the training loop; and the test's error."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import parallel
from titans_jax.data import series as series_lib
from titans_jax.training import config as config_lib
from titans_jax.training import step as step_lib
from titans_jax.training import tasks

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ForecastData:
  """What is trained on: the section `data` of such a run.

  Attributes:
    look_back: steps that are seen, a multiple of patch_length.
    horizon: steps that are forecast.
    patch_length: steps that make a token.
    batch_size: windows per step.
    epochs: how often every window is seen.
    dropout: share of a training window's steps, of every channel for itself, of
      which only the window's mean and deviation know.
  """

  look_back: int = 96
  horizon: int = 96
  patch_length: int = 8
  batch_size: int = 64
  epochs: int = 5
  dropout: float = 0.3

  def __post_init__(self):
    config_lib.check_at_least(
        self,
        "data",
        1,
        "look_back",
        "horizon",
        "patch_length",
        "batch_size",
        "epochs",
    )
    if self.look_back % self.patch_length:
      raise ValueError(
          f"data.look_back={self.look_back} is not a multiple of"
          f" data.patch_length={self.patch_length}."
      )
    if not 0 <= self.dropout < 1:
      raise ValueError(
          f"data.dropout must be at least 0 and below 1, got {self.dropout}."
      )


class ForecastTask:
  """Windows of a series in random order, every one once an epoch."""

  def __init__(
      self,
      model: step_lib.Model,
      series: series_lib.Series,
      data: ForecastData,
      *,
      seed: int,
  ):
    """Finds the windows.

    Raises:
      ValueError: a split is too short for a window, or training for a batch.
    """
    self._series = series
    self._data = data
    self._seed = seed
    self._starts = {
        split: series.starts(split, data.look_back, data.horizon)
        for split in series_lib.SPLITS
    }
    if len(self._starts["train"]) < data.batch_size:
      raise ValueError(
          f"data.batch_size={data.batch_size} is more than the"
          f" {len(self._starts['train'])} windows of the training rows."
      )
    self.fingerprint = tasks.fingerprint(
        (
            series.fingerprint,
            data.look_back,
            data.horizon,
            data.batch_size,
            data.dropout,
            seed,
        )
    )
    self._errors = jax.jit(functools.partial(_errors, model))

  @property
  def steps_per_epoch(self) -> int:
    """Batches of an epoch; the windows that do not fill one are left out."""
    return len(self._starts["train"]) // self._data.batch_size

  def num_windows(self, split: str) -> int:
    """Returns how many windows a split has."""
    return len(self._starts[split])

  def batches(self, first_step: int) -> Iterator[Batch]:
    size, dropout = self._data.batch_size, self._data.dropout
    chosen = tasks.shuffled(self._starts["train"], size, first_step, self._seed)
    for step, starts in enumerate(chosen, first_step):
      batch = self._windows(starts)
      if dropout:
        rng = np.random.default_rng((self._seed, 1, step))
        seen = rng.random(batch["history"].shape, np.float32) >= dropout
        batch["weights"] = seen.astype(np.float32) / (1 - dropout)
      yield batch

  def evaluate(self, params: Any) -> dict[str, float]:
    """Returns the validation rows' errors."""
    found = self.measure(params, "val")
    return {"eval_loss": found["mse"], "eval_mae": found["mae"]}

  def measure(self, params: Any, split: str) -> dict[str, float]:
    """Returns `mse` and `mae` of scaled values over all windows of a split."""
    return _measure(
        functools.partial(self._errors, params),
        self._all_windows(split),
        self._data.batch_size,
    )

  def measure_last_value(self, split: str) -> dict[str, float]:
    """Returns what `measure` would of forecasting the last value seen."""
    return _measure(
        jax.jit(_last_value_errors),
        self._all_windows(split),
        self._data.batch_size,
    )

  def windows(self, split: str, places: np.ndarray) -> Batch:
    """Returns a split's windows at `places` among them."""
    return self._windows(self._starts[split][places])

  def _all_windows(self, split: str) -> Iterator[tuple[Batch, int]]:
    """Yields batches of equal size, and how many of their rows count."""
    for starts, count in tasks.padded(
        self._starts[split], self._data.batch_size
    ):
      yield self._windows(starts), count

  def _windows(self, starts: np.ndarray) -> Batch:
    data = self._data
    rows = starts[:, None] + np.arange(data.look_back + data.horizon)
    values = self._series.values[rows]
    return {
        "history": values[:, : data.look_back],
        "phase": self._series.phase[rows],
        "future": values[:, data.look_back :],
    }


def _measure(errors, batches, batch_size: int) -> dict[str, float]:
  totals, count = np.zeros(2), 0
  for batch, counted in batches:
    found = jax.device_get(errors(parallel.place(batch, batch_size)))
    totals += np.array([x[:counted].sum(dtype=np.float64) for x in found])
    count += counted
  return {"mse": totals[0] / count, "mae": totals[1] / count}


def _errors(model, params, batch):
  """Returns every window's mean square and mean absolute error."""
  forecast = model.apply({"params": params}, batch["history"], batch["phase"])
  return _errors_of(forecast, batch)


def _last_value_errors(batch):
  return _errors_of(batch["history"][:, -1:], batch)


def _errors_of(forecast, batch):
  error = (forecast - batch["future"]).astype(jnp.float32)
  return jnp.mean(error**2, axis=(1, 2)), jnp.mean(jnp.abs(error), axis=(1, 2))
