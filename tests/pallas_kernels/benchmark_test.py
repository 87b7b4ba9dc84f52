# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The timing of the implementations, as its users run it."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from tests.experiments import processes

TINY = (
    "--head_dim=8",
    "--hidden=12",
    "--chunk=4",
    "--heads=2",
    "--batch=3",
    "--length=8",
    "--rounds=2",
)


def command(*args):
  return processes.run_module("pallas_kernels.benchmark", *args)


@pytest.mark.slow
class BenchmarkTest(parameterized.TestCase):

  def test_implementations_against_each_other(self):
    process = command(
        *TINY, "--implementations=pallas,xla", "--direction=forward", "--json"
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    xla, pallas = json.loads(process.stdout)
    self.assertEqual(xla["implementation"], "xla")
    self.assertEqual(xla["time_ratio_to_xla"], 1)
    self.assertTrue(xla["speed_is_meaningful"])
    self.assertFalse(pallas["speed_is_meaningful"])
    self.assertIn("meaningless", process.stderr)
    ratio = pallas["milliseconds"] / xla["milliseconds"]
    self.assertAlmostEqual(pallas["time_ratio_to_xla"], ratio)
    for row in (xla, pallas):
      # 11 D hidden + 2 b (D + hidden) multiply-adds, 24 tokens, 2 heads.
      self.assertEqual(row["model_flops"], 2 * (11 * 96 + 8 * 20) * 24 * 2)
      seconds = row["milliseconds"] / 1e3
      self.assertAlmostEqual(row["tokens_per_second"] * seconds, 24)
      self.assertLen(row["rounds_milliseconds"], 2)
      self.assertGreater(row["first_call_seconds"], seconds)
      self.assertEqual(row["device"], "cpu")
      # Nobody states what a CPU could do at most.
      self.assertIsNone(row["share_of_bfloat16_peak"])

  def test_only_what_is_compiled_by_default(self):
    process = command(*TINY, "--direction=backward", "--dtype=float32")
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertIn("Measured on cpu", process.stdout)
    self.assertIn("backward xla", process.stdout)
    self.assertNotIn("pallas", process.stdout)
    self.assertNotIn("meaningless", process.stdout)

  @parameterized.parameters(
      ("--head_dim=0", "--head_dim=0"),
      ("--rounds=none", "--rounds=none"),
      ("--dtype=half", "--dtype=half: value should be one of <float32|"),
      ("--implementations=cuda", "--implementations: 'cuda' is none of xla, "),
      ("--direction=", "--direction names none of forward, backward."),
      ("--length=100", "--length=100 is no multiple of --chunk=64: 64 or 128"),
  )
  def test_flags_are_checked(self, flag, message):
    processes.assert_refused(self, command(flag), message)


if __name__ == "__main__":
  absltest.main()
