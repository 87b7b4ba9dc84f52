# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Windows in random order, and errors over all of a split."""

import dataclasses
import itertools
import pathlib

from absl.testing import absltest
import jax
import numpy as np
import optax

from tests.data import series_test
from titans_jax.data import series as series_lib
from titans_jax.evaluation import forecasting
from titans_jax.models import forecaster
from titans_jax.training import step as step_lib


class ForecastTaskTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.create_tempdir().full_path)
    hours = np.arange(400)[:, None]
    values = np.sin(2 * np.pi * (hours + [0, 5]) / 24) + 1e-3 * hours
    self.series = series_lib.read(
        series_test.write(folder / "sines.csv", values)
    )
    self.data = forecasting.ForecastData(
        look_back=24, horizon=7, batch_size=16, epochs=2, dropout=0.0
    )
    self.model = forecaster.DLinear(24, 7, 2)
    self.task = self.make()

  def make(self, **kwargs):
    return forecasting.ForecastTask(
        self.model, self.series, self.data, **{"seed": 0, **kwargs}
    )

  def test_an_epoch_has_every_window_at_most_once(self):
    steps = self.task.steps_per_epoch
    self.assertEqual(steps, (280 - 30) // 16)
    epoch = list(itertools.islice(self.task.batches(0), steps + 1))
    self.assertEqual(epoch[0]["future"].shape, (16, 7, 2))
    self.assertEqual(epoch[0]["phase"].shape, (16, 31))
    windows = {row.tobytes() for b in epoch[:-1] for row in b["history"]}
    self.assertLen(windows, steps * 16)
    # A run that goes on finds the batches that follow.
    later = next(self.task.batches(steps))
    np.testing.assert_array_equal(later["future"], epoch[-1]["future"])
    self.assertNotEqual(self.make(seed=1).fingerprint, self.task.fingerprint)

  def test_dropout_hides_steps(self):
    self.data = dataclasses.replace(self.data, dropout=0.25)
    task = self.make()
    first, second = itertools.islice(task.batches(0), 2)
    self.assertEqual(first["weights"].shape, first["history"].shape)
    np.testing.assert_allclose(np.unique(first["weights"]), [0, 4 / 3])
    self.assertAlmostEqual(first["weights"].mean(), 1, delta=0.1)
    self.assertFalse(np.array_equal(first["weights"], second["weights"]))
    np.testing.assert_array_equal(
        next(task.batches(1))["weights"], second["weights"]
    )
    self.assertNotEqual(task.fingerprint, self.task.fingerprint)
    with self.assertRaisesRegex(ValueError, "data.dropout must be .* got 1.0"):
      forecasting.ForecastData(dropout=1.0)

  def test_errors_are_those_of_all_windows(self):
    found = self.task.measure_last_value("test")
    first, end = self.series.bounds["test"]
    errors = [
        self.series.values[i : i + 7] - self.series.values[i - 1]
        for i in range(first, end - 6)
    ]
    self.assertLen(errors, self.task.num_windows("test"))
    self.assertAlmostEqual(found["mse"], np.square(errors).mean(), places=5)
    self.assertAlmostEqual(found["mae"], np.abs(errors).mean(), places=5)

  def test_sines_are_learned(self):
    optimizer = optax.adam(1e-2)
    step = step_lib.jit_train_step(self.model, optimizer)
    state = step_lib.init_state(self.model, optimizer, 0)
    for batch in itertools.islice(self.task.batches(0), 200):
      state, metrics = step(state, batch)
    self.assertLess(float(metrics["loss"]), 0.01)
    found = self.task.measure(state.params, "test")
    self.assertLess(found["mse"], 0.05)
    self.assertAlmostEqual(
        self.task.evaluate(state.params)["eval_loss"],
        self.task.measure(state.params, "val")["mse"],
    )
    windows = self.task.windows("test", np.array([0, 3]))
    forecast = self.model.apply(
        {"params": jax.device_get(state.params)},
        windows["history"],
        windows["phase"],
    )
    self.assertLess(np.abs(forecast - windows["future"]).mean(), 0.2)

  def test_bad_sizes(self):
    with self.assertRaisesRegex(ValueError, "look_back=20 is not a multiple"):
      forecasting.ForecastData(look_back=20)
    self.data = forecasting.ForecastData(
        look_back=24, horizon=7, batch_size=512
    )
    with self.assertRaisesRegex(ValueError, "batch_size=512 is more than the"):
      self.make()


if __name__ == "__main__":
  absltest.main()
