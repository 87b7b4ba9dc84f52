# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Word problems: their tables and batches."""

import itertools

from absl.testing import parameterized
import numpy as np

from titans_jax.evaluation import state_tracking
from titans_jax.models import config as model_config
from titans_jax.models import language_model
from titans_jax.training import step as step_lib


class TablesTest(parameterized.TestCase):

  def test_s5_is_the_group(self):
    table = state_tracking.TASKS["s5"]()
    self.assertEqual(table.shape, (120, 120))
    np.testing.assert_array_equal(table[0], np.arange(120))  # the identity
    np.testing.assert_array_equal(table[:, 0], np.arange(120))
    for axis in (0, 1):  # every row and column is a permutation
      np.testing.assert_array_equal(
          np.sort(table, axis),
          np.sort(table * 0 + np.arange(120), 1).T
          if axis == 0
          else np.tile(np.arange(120), (120, 1)),
      )
    rng = np.random.default_rng(0)
    for a, b, c in rng.integers(120, size=(100, 3)):
      self.assertEqual(table[table[a, b], c], table[a, table[b, c]])
    self.assertTrue((table != table.T).any())

  def test_arithmetic(self):
    table = state_tracking.TASKS["arithmetic"]()
    for x, y in itertools.product(range(5), range(5)):
      self.assertEqual(table[x, y], (x + y) % 5)
      self.assertEqual(table[x, 5 + y], (x - y) % 5)
      if y:
        self.assertEqual(table[x, 9 + y], x * y % 5)


class BatchTest(parameterized.TestCase):

  def test_parity_of_all_tokens_so_far(self):
    data = state_tracking.StateTrackingData(sequence_length=20, batch_size=8)
    batch = state_tracking.make_batch(data, np.random.default_rng(0), 32)
    lengths = batch["mask"].sum(1)
    self.assertGreater(len(set(lengths)), 3)
    for row, length in enumerate(lengths):
      expected = np.cumsum(batch["tokens"][row, :length]) % 2
      np.testing.assert_array_equal(batch["targets"][row, :length], expected)
      self.assertTrue((batch["targets"][row, length:] == -1).all())
    self.assertEqual(batch["tokens"].shape, (8, 32))

  def test_a_model_is_measured_at_any_length(self):
    data = state_tracking.StateTrackingData(task="s5", batch_size=64)
    model = language_model.TitansLM(
        model_config.TitansConfig(
            variant="lmm",
            vocab_size=data.vocab_size,
            model_dim=8,
            num_heads=1,
            num_layers=1,
            chunk_size=16,
            num_persistent=0,
        )
    )
    params = step_lib.init_params(model, 0)
    task = state_tracking.StateTrackingTask(model, data, seed=0)
    found = task.measure(params, 20)  # not a multiple of the chunk
    self.assertAlmostEqual(found["loss"], np.log(120), delta=0.5)
    self.assertLess(found["accuracy"], 0.05)
    self.assertLess(found["last"], 0.05)

  @parameterized.parameters(
      ({"task": "s6"}, "data.task='s6' is none of parity, arithmetic, s5"),
      ({"least_length": 65}, "least_length=65 is more than"),
      ({"batch_size": 0}, "data.batch_size must be at least 1"),
  )
  def test_bad_input(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      state_tracking.StateTrackingData(**options)
