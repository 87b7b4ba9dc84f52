# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ablations as a user runs them."""

import json

from absl.testing import absltest
import pytest

from experiments import _results
from experiments import _variants
from tests.experiments import processes
from titans_jax.evaluation import recall
from titans_jax.training import overlay
from titans_jax.training import recipes


class AblationsTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)

  @pytest.mark.slow
  def test_smoke(self):
    workdir = self.folder / "smoke"
    text = processes.write_text(self.folder / "text.txt")
    args = (
        f"--workdir={workdir}",
        "--smoke",
        "--seeds=1",
        "--rows=no momentum",
        f"--config.data.source={text}",
        "--config.data.sequence_length=32",
        *(
            f"--{config}.{field}"
            for config in ("config", "recall")
            for field in (
                "model.num_layers=1",
                "model.model_dim=16",
                "model.memory.depth=1",
                "data.batch_size=4",
            )
        ),
    )
    process = processes.run("ablations", *args)
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertIn("without momentum", process.stdout)  # the paper's
    results = json.loads((workdir / "results.json").read_text())
    self.assertEqual(list(results["models"]), ["no momentum"])
    for found in results["models"].values():
      self.assertBetween(found["text"]["0"], 2, 300)
      self.assertBetween(found["recall"]["0"], 0, 1)
    config = json.loads(
        (workdir / "text_no_momentum_0" / "config.json").read_text()
    )
    self.assertFalse(config["model"]["momentum"])
    self.assertGreater((workdir / "ablations.png").stat().st_size, 5000)
    again = processes.run("ablations", *args)
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertNotIn("Compiled", again.stdout)

  def test_every_row_differs_in_its_fields_alone(self):
    base = recipes.synthetic(recall.RecallData, model={}, train={})
    base.model.variant = "lmm"
    before = dict(_results.config_settings(base))
    changed = []
    for row, fields in _variants.ABLATIONS.items():
      values = base.copy_and_resolve_references()
      _variants.change(values.model, fields)
      overlay.run_config(values, 64, recall.RecallData)  # is valid
      after = _results.config_settings(values)
      differing = {
          name: after[name] for name in after if after[name] != before[name]
      }
      self.assertEqual(
          differing, {f"config.model.{k}": v for k, v in fields.items()}, row
      )
      changed.append(repr(differing))
    self.assertLen(set(changed), len(_variants.ABLATIONS))

  def test_bad_input(self):
    processes.assert_all_refused(
        self,
        "ablations",
        (
            ("--rows=no luck", "--rows: 'no luck' is none of"),
            ("--tasks=", "--tasks names none of text, recall"),
            ("--config.data.sequence_length=250", "not a multiple of 16"),
        ),
    )


if __name__ == "__main__":
  absltest.main()
