# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every token is packed once, at the boundaries, close together."""

from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import numpy as np

from titans_jax.data import packing


class PackingTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(
      lengths=st.lists(st.integers(1, 70), min_size=1, max_size=30),
      unit=st.sampled_from([1, 4, 8]),
      units=st.integers(1, 4),
  )
  def test_every_token_once(self, lengths, unit, units):
    size = unit * units
    lengths = np.array(lengths)
    starts = np.cumsum(lengths) - lengths
    mark = 999
    tokens = np.arange(lengths.sum() + 1)
    tokens[np.append(starts, lengths.sum())] = mark
    plan = packing.plan(starts, lengths, size, unit)
    self.assertEqual(plan.num_tokens, lengths.sum())
    inputs, targets = [], []
    for sequence in range(plan.num_sequences):
      example = packing.assemble(plan, sequence, tokens, mark)
      mask = example["mask"]
      inputs.append(example["tokens"][mask])
      targets.append(example["targets"][mask])
      np.testing.assert_array_equal(example["targets"][~mask], -1)
      # Documents begin at the boundaries, and are masked at their tails only.
      ids = example["document_ids"]
      begins = np.flatnonzero(np.diff(ids, prepend=-1))
      np.testing.assert_array_equal(begins % unit, 0)
      for first, last in zip(begins, np.append(begins[1:], size)):
        here = mask[first:last]
        np.testing.assert_array_equal(here, np.sort(here)[::-1])
        self.assertTrue(here[0])
    np.testing.assert_array_equal(
        np.sort(np.concatenate(inputs)), np.sort(tokens[:-1])
    )
    # The target of each token is the one behind it; every end is predicted.
    np.testing.assert_array_equal(
        np.sort(np.concatenate(targets)), np.sort(tokens[1:])
    )

  def test_fits_tightly(self):
    lengths = np.array([30, 2, 16, 14, 9, 5, 4])
    starts = np.cumsum(lengths) - lengths
    plan = packing.plan(starts, lengths, 32, 2)
    self.assertEqual(plan.num_sequences, 3)
    self.assertLess(plan.padding, 0.2)

  def test_plan_is_unique(self):
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    starts = np.cumsum(lengths) - lengths
    first, second = (packing.plan(starts, lengths, 64, 8) for _ in range(2))
    np.testing.assert_array_equal(first.pieces, second.pieces)

  def test_length_and_unit(self):
    with self.assertRaisesRegex(ValueError, "=20 is not a multiple of 8"):
      packing.plan(np.array([0]), np.array([30]), 20, 8)
