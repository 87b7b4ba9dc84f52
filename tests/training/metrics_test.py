# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run that was stopped are those of one that was not."""

import math
import pathlib

from absl.testing import absltest
import numpy as np

from titans_jax.layers import neural_memory
from titans_jax.training import metrics


class MetricsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)

  def write(self, steps, resume_step=0):
    writer = metrics.MetricWriter(self.workdir, resume_step=resume_step)
    for step in steps:
      writer.write(step, {"loss": 1 / step})
    writer.close()

  def test_rows_past_the_resumed_step_are_dropped(self):
    self.write(range(1, 8))
    self.write(range(5, 7), resume_step=4)
    rows = metrics.read_metrics(self.workdir)
    self.assertEqual([row["step"] for row in rows], [1, 2, 3, 4, 5, 6])

  def test_row_that_a_kill_cut_off_is_dropped(self):
    self.write(range(1, 4))
    path = self.workdir / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    self.write([3], resume_step=2)
    rows = metrics.read_metrics(self.workdir)
    self.assertEqual(rows[-1], {"step": 3, "loss": 1 / 3})

  def test_not_finite_is_null(self):
    writer = metrics.MetricWriter(self.workdir)
    writer.write(1, {"loss": math.nan, "norm": math.inf})
    writer.close()
    rows = metrics.read_metrics(self.workdir)
    self.assertEqual(rows, [{"step": 1, "loss": None, "norm": None}])
    metrics.plot_learning_curve(self.workdir)

  def test_gauges_get_their_layer_s_name(self):
    names = neural_memory.Gauges._fields
    gauges = neural_memory.Gauges(
        *(np.array([i, i + 0.5]) for i in range(len(names)))
    )
    row = metrics.flatten({"loss": np.float32(2), "memory": gauges})
    self.assertEqual(row["memory/surprise/layer_01"], 0.5)
    self.assertLen(row, 1 + 2 * len(names))
    self.assertEqual(metrics.flatten({"loss": 2, "memory": None}), {"loss": 2})
