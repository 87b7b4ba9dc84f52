# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Throughput over length as a user measures it."""

import json

from absl.testing import absltest
import pytest

from tests.experiments import processes


class EfficiencyTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)

  @pytest.mark.slow
  def test_smoke(self):
    workdir = self.folder / "smoke"
    args = (
        f"--workdir={workdir}",
        "--smoke",
        "--models=windowed,linear",
        "--lengths=32,64",
        "--config.model.num_layers=1",
        "--config.model.model_dim=16",
        "--config.model.window=16",
        "--config.model.chunk_size=16",
        "--config.data.sequence_length=128",
    )
    process = processes.run("efficiency", *args)
    self.assertEqual(process.returncode, 0, process.stderr)
    results = json.loads((workdir / "results.json").read_text())
    # The baseline is measured beside what is asked for.
    self.assertEqual(
        set(results["models"]), {"windowed", "linear", "transformer"}
    )
    for name, found in results["models"].items():
      self.assertEqual(list(found), ["32", "64"])
      for row in found.values():
        self.assertGreater(row["tokens_per_second"], 100)
        self.assertGreater(row["bytes"], 10_000)
        if name == "transformer":
          self.assertEqual(row["ratio"], 1)
    self.assertGreater((workdir / "efficiency.png").stat().st_size, 5000)
    again = processes.run("efficiency", *args)
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertNotIn("tokens/s, ", again.stdout)

  def test_bad_input(self):
    processes.assert_all_refused(
        self,
        "efficiency",
        (
            ("--models=rnn", "--models: 'rnn' is none of"),
            ("--lengths=500", "are not sequences of 500"),
            ("--lengths=0", "--lengths: '0' is no positive integer"),
        ),
    )


if __name__ == "__main__":
  absltest.main()
