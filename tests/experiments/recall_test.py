# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The recall experiment through its command line, at its smallest."""

import json

from absl.testing import parameterized
import pytest

from tests.experiments import processes

SMALL = (
    "--config.model.num_layers=1",
    "--config.model.model_dim=16",
    "--config.data.batch_size=4",
)


class RecallTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)

  @pytest.mark.slow
  def test_smoke(self):
    workdir = self.folder / "smoke"
    args = (
        f"--workdir={workdir}",
        "--variants=transformer",
        "--smoke",
        *SMALL,
    )
    process = processes.run("recall", *args)
    self.assertEqual(process.returncode, 0, process.stderr)
    found = json.loads((workdir / "results.json").read_text())
    self.assertEqual(found["experiment"], "recall")
    results = found["models"]
    self.assertEqual(list(results), ["transformer"])
    for result in results.values():
      self.assertLess(result["reach"], result["accuracy"][0]["distance"])
      for point in result["accuracy"]:
        self.assertBetween(point["random_filler"], 0, 1)
        self.assertBetween(point["repeated_filler"], 0, 1)
    self.assertGreater((workdir / "recall.png").stat().st_size, 5000)
    with self.subTest("again"):  # reads what is there, trains nothing
      again = processes.run("recall", *args)
      self.assertEqual(again.returncode, 0, again.stderr)
      self.assertNotIn("Compiled the training step", again.stdout)
      self.assertEqual(
          json.loads((workdir / "results.json").read_text()), found
      )
    with self.subTest("others"):  # results of other settings do not mix
      other = processes.run("recall", *args, "--config.train.z_loss=0.1")
      self.assertEqual(other.returncode, 1)
      self.assertIn(
          "was measured otherwise: config.train.z_loss was 0.0 and is 0.1",
          other.stderr,
      )

  @parameterized.parameters(
      ("--variants=", "--variants names none"),
      ("--variants=lmm,rnn", "--variants: 'rnn' is none of"),
      (
          "--variants=mac --config.data.filler_length=24",
          "within the .* tokens that attention",
      ),
      ("--config.data.num_keys=2", "data.num_keys=2 cannot give"),
  )
  def test_bad_input(self, arguments, message):
    process = processes.run(
        "recall", f"--workdir={self.folder / 'bad'}", *arguments.split()
    )
    self.assertEqual(process.returncode, 1)
    self.assertRegex(process.stderr, message)
    self.assertNotIn("Traceback", process.stderr)
