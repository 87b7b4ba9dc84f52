# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Results go on where they were taken, and nowhere else."""

import pathlib

from absl.testing import absltest

from experiments import _results
from titans_jax.training import overlay
from titans_jax.training import trainer


class ResultsTest(absltest.TestCase):

  def make(self, settings):
    return _results.Results(self.folder, "depth", settings, lambda models: [])

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / "run"
    self.settings = _results.config_settings(overlay.run_config_dict())
    results = self.make(self.settings)
    results.models["a"] = {"96": 0.5}
    results.write()

  def test_go_on(self):
    self.assertEqual(self.make(self.settings).models, {"a": {"96": 0.5}})
    with self.assertRaisesRegex(ValueError, "seed was 0 and is 1"):
      self.make(self.settings | {"config.seed": 1})

  def test_runs_that_diverge_or_stop(self):
    def diverges():
      raise trainer.NonFiniteLossError("loss is nan")

    seeds = {}
    self.assertTrue(_results.add_seed(seeds, 0, lambda: 7.0))
    self.assertTrue(_results.add_seed(seeds, 1, diverges))
    self.assertFalse(_results.add_seed(seeds, 2, lambda: None))
    self.assertEqual(seeds, {"0": 7.0, "1": None})
    self.assertEqual(_results.over_seeds(seeds), "7.000 +- 0.000 (1 diverged)")

  def test_of_a_program_that_had_fewer_fields(self):
    old = dict(self.settings)
    del old["config.model.read_before_write"], old["config.train.z_loss"]
    (self.folder / "results.json").unlink()
    self.make(old).write()
    self.make(self.settings)
    changed = self.settings | {"config.model.read_before_write": True}
    with self.assertRaisesRegex(ValueError, "write was False and is True"):
      self.make(changed)


if __name__ == "__main__":
  absltest.main()
