# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How often a scan keeps its carry."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from pallas_kernels import tuning
from titans_jax.memory import kept


class ChooseGroupTest(parameterized.TestCase):

  @parameterized.parameters(
      # All carries fit: each is kept.
      (64, None, 2**20, 1),
      # They would take 1 GiB, twice what is kept: every second.
      (64, None, 2**24, 2),
      # 5 GiB: about the square root, and a divisor.
      (60, None, 2**30 // 12, 10),
      # However large a carry, no more than about the square root.
      (64, None, 2**40, 8),
      # No divisor near it.
      (67, None, 2**40, 8),
      # As asked for, as far as there are steps.
      (64, 5, 2**40, 5),
      (4, 5, 1, 4),
  )
  def test_divides_or_is_the_root(self, steps, group, size, expected):
    with mock.patch.object(tuning, "gpu_kind", lambda: None):
      self.assertEqual(kept.choose_group(steps, group, size), expected)

  @parameterized.parameters(("NVIDIA H200", 1), ("NVIDIA A100", 4))
  def test_hopper_keeps_more(self, kind, expected):
    with mock.patch.object(tuning, "gpu_kind", lambda: kind):
      self.assertEqual(kept.choose_group(64, None, 2**25), expected)


if __name__ == "__main__":
  absltest.main()
