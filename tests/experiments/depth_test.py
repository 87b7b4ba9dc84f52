# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Depth of the memory as a user measures it."""

import json

from absl.testing import absltest
import pytest

from tests.experiments import processes


class DepthTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)

  @pytest.mark.exhaustive
  def test_smoke(self):
    workdir = self.folder / "smoke"
    text = processes.write_text(self.folder / "text.txt")
    args = (
        f"--workdir={workdir}",
        "--smoke",
        "--seeds=1",
        "--depths=1,2",
        "--lengths=32",
        f"--config.data.source={text}",
        "--config.data.sequence_length=32",
        "--config.model.num_layers=1",
        "--config.model.model_dim=16",
    )
    process = processes.run("depth", *args)
    self.assertEqual(process.returncode, 0, process.stderr)
    results = json.loads((workdir / "results.json").read_text())
    self.assertEqual(list(results["models"]), ["1 layer", "2 layers"])
    for found in results["models"].values():
      self.assertBetween(found["32"]["perplexity"]["0"], 2, 300)
      self.assertGreater(found["32"]["tokens_per_second"], 100)
    config = json.loads(
        (workdir / "depth_2_length_32_0" / "config.json").read_text()
    )
    self.assertEqual(config["model"]["memory"]["depth"], 2)
    self.assertGreater((workdir / "depth.png").stat().st_size, 5000)
    again = processes.run("depth", *args)
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertNotIn("Compiled", again.stdout)

  @pytest.mark.exhaustive  # results_test has what is particular to it
  def test_a_run_that_diverges_is_one_of_the_results(self):
    workdir = self.folder / "diverged"
    process = processes.run(
        "depth",
        f"--workdir={workdir}",
        "--smoke",
        "--seeds=2",
        "--depths=1",
        "--lengths=32",
        f"--config.data.source={processes.write_text(self.folder / 'b.txt')}",
        "--config.data.sequence_length=32",
        "--config.model.num_layers=1",
        "--config.model.model_dim=16",
        "--config.optimizer.learning_rate=1e30",
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertRegex(process.stdout, r"1 layer +\(2 diverged\)")
    found = json.loads((workdir / "results.json").read_text())["models"]
    perplexity = found["1 layer"]["32"]["perplexity"]
    self.assertEqual(perplexity, {"0": None, "1": None})

  def test_bad_input(self):
    processes.assert_all_refused(
        self,
        "depth",
        (
            ("--depths=0", "--depths: '0' is no positive integer"),
            ("--lengths=100", "are not sequences of 100"),
            ("--config.model.memory.depth=2", "means nothing beside --depths"),
        ),
    )


if __name__ == "__main__":
  absltest.main()
