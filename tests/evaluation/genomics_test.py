# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The motif task is what it says; batches of labelled DNA."""

import dataclasses
import itertools

from absl.testing import absltest
import jax
import numpy as np

from titans_jax.data import genomes
from titans_jax.evaluation import genomics
from titans_jax.models import classifier
from titans_jax.models import presets
from titans_jax.training import step as step_lib


class MotifTest(absltest.TestCase):

  def test_the_order_says_the_class(self):
    rng = np.random.default_rng(0)
    motifs = genomics.make_motifs(300, 100, 200, rng)
    self.assertEqual(motifs.classes, genomics.MOTIFS)
    self.assertBetween(motifs.labels.mean(), 0.4, 0.6)
    self.assertBetween(min(map(len, motifs.tokens)), 100, 110)
    self.assertBetween(max(map(len, motifs.tokens)), 190, 200)
    for tokens, label in zip(motifs.tokens, motifs.labels):
      text = "".join(genomes.BASES[t] for t in tokens)
      first, last = (text.index(genomics.MOTIFS[m]) for m in (label, 1 - label))
      self.assertGreaterEqual(
          last - first, genomics.least_distance(len(tokens))
      )
    strands = {
        genomes.reverse_complement(genomes.encode(m, "")).tobytes()
        for m in genomics.MOTIFS
    } | {genomes.encode(m, "").tobytes() for m in genomics.MOTIFS}
    self.assertLen(strands, 4)
    with self.assertRaisesRegex(ValueError, "20 bases does not hold"):
      genomics.make_motifs(1, 20, 30, rng)


class GenomicsTaskTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    tokens = [rng.integers(4, size=n).astype(np.uint8) for n in range(20, 60)]
    labels = np.arange(40, dtype=np.int32) % 2
    self.sequences = genomes.Sequences(tokens, labels, ("a", "b"), "some")
    self.data = genomics.GenomicsData(
        sequence_length=48, batch_size=8, heldout_fraction=0.2
    )
    config = presets.tiny(variant="lmm", vocab_size=6, num_layers=1)
    self.model = classifier.Classifier(config, 2)

  def test_batches(self):
    task = genomics.GenomicsTask(self.model, self.sequences, self.data, seed=0)
    epoch = list(itertools.islice(task.batches(0), 5))
    self.assertEqual(self.data.steps_per_epoch(40), 4)
    known = {}
    for i, tokens in enumerate(self.sequences.tokens):
      known[tokens[:48].tobytes()] = i
      known[genomes.reverse_complement(tokens[:48]).tobytes()] = i
    seen, turned = [], 0
    for batch in epoch[:4]:
      for row, length, label in zip(
          batch["tokens"], batch["lengths"], batch["labels"]
      ):
        mask = np.arange(len(row)) < length
        i = known[row[mask].astype(np.uint8).tobytes()]
        seen.append(i)
        self.assertEqual(label, self.sequences.labels[i])
        self.assertTrue((row[~mask] == genomes.PAD).all())
        turned += not np.array_equal(row[mask], self.sequences.tokens[i][:48])
    self.assertLen(set(seen), 32)
    self.assertBetween(turned, 4, 28)
    np.testing.assert_array_equal(
        next(task.batches(4))["tokens"], epoch[4]["tokens"]
    )

  def test_measures_every_sequence_once(self):
    data = dataclasses.replace(self.data, sequence_length=64)
    task = genomics.GenomicsTask(self.model, self.sequences, data, seed=0)
    params = step_lib.init_params(self.model, 0)
    found = task.measure(params, self.sequences, 64)
    apply = jax.jit(self.model.apply)
    right = []
    for tokens, label in zip(self.sequences.tokens, self.sequences.labels):
      padded = np.full((1, 64), genomes.PAD, np.int32)
      padded[0, : len(tokens)] = tokens
      lengths = np.array([len(tokens)], np.int32)
      logits = apply({"params": params}, padded, lengths)
      right.append(int(np.argmax(logits)) == label)
    self.assertAlmostEqual(found["accuracy"], np.mean(right))
    self.assertIn("eval_loss", task.evaluate(params))

  def test_too_few(self):
    data = genomics.GenomicsData(batch_size=64)
    with self.assertRaisesRegex(
        ValueError, "batch_size=64 is more than the 36"
    ):
      genomics.GenomicsTask(self.model, self.sequences, data, seed=0)


if __name__ == "__main__":
  absltest.main()
