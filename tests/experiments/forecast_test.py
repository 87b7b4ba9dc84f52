# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Forecasting as a user runs it."""

import json

from absl.testing import parameterized
import numpy as np
import pytest

from tests.data import series_test
from tests.experiments import processes


class ForecastTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)
    hours = np.arange(500)[:, None]
    values = np.sin(2 * np.pi * (hours + [0, 5]) / 24) + 0.01 * hours
    cls.csv = series_test.write(cls.folder / "ETTh1-like.csv", values)

  def arguments(self, workdir, *args):
    return (f"--csv={self.csv}", f"--workdir={self.folder / workdir}", *args)

  @pytest.mark.slow
  def test_smoke(self):
    args = self.arguments(
        "smoke",
        "--smoke",
        "--seeds=1",
        "--horizons=4",
        "--config.data.look_back=24",
        "--config.data.batch_size=8",
        "--config.model.model_dim=8",
        "--config.model.chunk_size=1",
    )
    process = processes.run("forecast", *args)
    self.assertEqual(process.returncode, 0, process.stderr)
    path = self.folder / "smoke" / "results.json"
    results = json.loads(path.read_text())
    self.assertEqual(results["experiment"], "forecast")
    self.assertEqual(
        list(results["models"]), ["titans", "dlinear", "last value"]
    )
    for found in results["models"].values():
      for error in found["4"]["0"].values():
        self.assertBetween(error, 1e-6, 10)
    self.assertIn("last value", process.stdout)
    plot = self.folder / "smoke" / "forecast_4.png"
    self.assertGreater(plot.stat().st_size, 5000)
    again = processes.run("forecast", *args)
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertNotIn("Compiled", again.stdout)
    self.assertEqual(json.loads(path.read_text()), results)

  @parameterized.parameters(
      ("--csv=/nowhere", "--csv=/nowhere is no file"),
      ("--horizons=", "--horizons names none"),
      ("--horizons=week", "--horizons: 'week' is no positive integer"),
      ("--horizons=96", "too few for a look-back of 96 and a horizon of 96"),
      ("--config.data.patch_length=7", "look_back=96 is not a multiple of"),
  )
  def test_bad_input(self, argument, message):
    process = processes.run("forecast", *self.arguments("bad", argument))
    self.assertEqual(process.returncode, 1)
    self.assertRegex(process.stderr, message)
    self.assertNotIn("Traceback", process.stderr)
    self.assertFalse((self.folder / "bad").exists())
