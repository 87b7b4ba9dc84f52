# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Baselines and tasks."""

import pathlib

from absl.testing import parameterized
import numpy as np

import titans_jax as titans
from titans_jax import data
from titans_jax.evaluation import bigram
from titans_jax.evaluation import recall


class BigramTest(parameterized.TestCase):

  def bits(self, text):
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / "text").write_bytes(text)
    tokenizer = data.ByteTokenizer()
    corpus = data.prepare(
        str(folder / "text"), tokenizer, folder, sequence_length=32, unit=8
    )
    return bigram.bits_per_byte(corpus, tokenizer)

  def test_random_bytes_have_their_entropy(self):
    text = np.random.default_rng(0).choice(list(b"abcd"), 40_000)
    bits = self.bits(text.astype(np.uint8).tobytes())
    self.assertAlmostEqual(bits, 2.0, delta=0.02)

  def test_a_chain_is_predicted(self):
    self.assertLess(self.bits(b"abcd" * 5000), 0.05)


class RecallTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.data = recall.RecallData(batch_size=6)
    self.batch = recall.make_batch(self.data, np.random.default_rng(0))

  def test_every_query_asks_for_its_pair(self):
    tokens, targets = self.batch["tokens"], self.batch["targets"]
    pairs = self.data.num_pairs
    for row in range(6):
      listed = tokens[row, : 2 * pairs].reshape(pairs, 2)
      values = dict(listed.tolist())
      self.assertLen(values, pairs)
      for i in range(pairs):
        query = self.data.sequence_length - pairs + i
        answer = targets[row, query]
        self.assertEqual(answer, values[tokens[row, query]])
        place = query - self.batch["distances"][row, i]
        self.assertEqual(tokens[row, place], answer)

  def test_elimination_does_not_help(self):
    # No answer stands behind the pairs, and only queries are scored.
    behind = self.batch["tokens"][:, 2 * self.data.num_pairs :]
    low, high = self.data.num_keys, self.data.num_keys + self.data.num_values
    self.assertFalse(((behind >= low) & (behind < high)).any())
    self.assertEqual(
        (self.batch["targets"] >= 0).sum(), 6 * self.data.num_pairs
    )

  def test_pairs_lie_out_of_reach(self):
    for variant in ("lmm", "mac", "mag", "mal", "transformer"):
      config = titans.presets.tiny(variant=variant)
      self.assertLess(recall.reach(config), self.data.least_distance)
    self.assertGreaterEqual(
        self.batch["distances"].min(), self.data.least_distance
    )

  def test_half_of_the_fillers_repeat(self):
    pairs = self.data.num_pairs
    fillers = self.batch["tokens"][:, 2 * pairs : -pairs]
    kinds = [len(set(row)) for row in fillers]
    np.testing.assert_array_equal(np.array(kinds) == 1, [True, False] * 3)

  def test_batches_depend_on_the_step_alone(self):
    model = titans.TitansLM(titans.presets.tiny(variant="lmm"))
    task = recall.RecallTask(model, self.data, seed=1)
    first = task.batches(0)
    steps = [next(first) for _ in range(3)]
    np.testing.assert_array_equal(
        next(task.batches(2))["tokens"], steps[2]["tokens"]
    )

  @parameterized.parameters(
      ({"num_pairs": 0}, "num_pairs must be at least 1"),
      ({"num_keys": 4}, "num_keys=4 cannot give"),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      recall.RecallData(**values)
