# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run that was stopped are those of one that was not."""

import importlib.util
import math
import os
import pathlib
import subprocess
import sys
import time
from unittest import mock

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

  def test_weights_and_biases_gets_them_too(self):
    self.need_wandb()
    with mock.patch.dict(os.environ, {"WANDB_MODE": "offline"}):
      for first in (1, 3):  # A run that was stopped goes on.
        writer = metrics.MetricWriter(
            self.workdir,
            resume_step=first - 1,
            wandb={
                "project": "of_this_test",
                "dir": str(self.workdir),
                "config": {"model": {"variant": "mac"}},
            },
        )
        writer.write(first, {"loss": 7031.5 * first})
        writer.close()
        time.sleep(1.1)  # Its files are named by the second.
    paths = list(self.workdir.rglob("*.wandb"))
    self.assertLen(paths, 2)
    name = (self.workdir / metrics.WANDB_RUN).read_bytes()
    # A process of its own writes them.
    deadline = time.monotonic() + 30
    while any(b"loss" not in path.read_bytes() for path in paths):
      self.assertLess(time.monotonic(), deadline)
      time.sleep(0.1)
    written = [path.read_bytes() for path in paths]
    for content in written:
      for part in (name, b"of_this_test", b'"variant":"mac"'):
        self.assertIn(part, content)
    self.assertLen([w for w in written if b"7031.5" in w], 1)
    self.assertLen([w for w in written if b"21094.5" in w], 1)
    self.assertEqual(metrics.read_metrics(self.workdir)[1]["step"], 3)

  def need_wandb(self):
    if importlib.util.find_spec("wandb") is None:
      self.skipTest("wandb is not installed (extra wandb).")

  def test_weights_and_biases_without_a_key_says_so(self):
    self.need_wandb()
    program = (
        "from titans_jax.training import metrics;"
        f" metrics.MetricWriter({str(self.workdir)!r}, wandb={{'project': 'p'}})"
    )
    environment = os.environ | {
        "HOME": str(self.workdir),
        "WANDB_MODE": "online",
    }
    environment.pop("WANDB_API_KEY", None)
    process = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    self.assertRegex(
        process.stderr, r"OSError: train\.wandb_project=p: .*WANDB_MODE=offline"
    )

  def test_gauges_get_their_layer_s_name(self):
    names = neural_memory.Gauges._fields
    gauges = neural_memory.Gauges(
        *(np.array([i, i + 0.5]) for i in range(len(names)))
    )
    row = metrics.flatten({"loss": np.float32(2), "memory": gauges})
    self.assertEqual(row["memory/surprise/layer_01"], 0.5)
    self.assertLen(row, 1 + 2 * len(names))
    self.assertEqual(metrics.flatten({"loss": 2, "memory": None}), {"loss": 2})
