# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Continuations are scored as one pass over the whole would score them."""

from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

import titans_jax as titans
from titans_jax.evaluation import scoring
from titans_jax.inference import generation


class ScoringTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    config = titans.presets.tiny(
        variant="transformer", num_layers=1, window=None, max_length=64
    )
    cls.model = titans.TitansLM(config)
    cls.variables = jax.jit(cls.model.init)(
        jax.random.key(0), np.zeros((1, 8), np.int32)
    )
    cls.apply = staticmethod(jax.jit(cls.model.apply))
    rng = np.random.default_rng(0)
    cls.contexts = [
        rng.integers(256, size=n).astype(np.int32) for n in (1, 40, 7)
    ]

  def log_probs(self, ids):
    """Returns log p of every id but the first, and the likeliest ids."""
    padded = np.zeros((1, 64), np.int32)  # What stands behind is not seen.
    padded[0, : len(ids)] = ids
    logits, _ = self.apply(self.variables, padded)
    found = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)[: len(ids)]
    return found[np.arange(len(ids) - 1), ids[1:]], found.argmax(axis=1)

  def pairs(self):
    """Yields contexts, a continuation, and whether it is the likeliest."""
    for context in self.contexts:
      best = context
      for _ in range(3):
        best = np.append(best, self.log_probs(best)[1][-1]).astype(np.int32)
      best = best[len(context) :]
      other = best.copy()
      other[1] = (other[1] + 1) % 256
      yield from ((context, best, True), (context, other, False))

  def test_is_the_pass_over_the_whole(self):
    cases = list(self.pairs())
    pairs = [case[:2] for case in cases]
    for share in (True, False):
      found = scoring.score_continuations(
          self.model,
          self.variables,
          pairs,
          batch_size=4,
          share_prefixes=share,
      )
      for (context, continuation, greedy), score in zip(cases, found):
        whole, _ = self.log_probs(np.append(context, continuation))
        expected = whole[len(context) - 1 :].sum()
        self.assertAlmostEqual(score.log_prob, expected, delta=1e-4)
        self.assertEqual(score.greedy, greedy)

  def test_a_prefix_is_read_once(self):
    pairs = [case[:2] for case in self.pairs()]
    totals = []
    for share in (True, False):
      with mock.patch.object(
          generation, "prefill", side_effect=generation.prefill
      ) as prefill:
        scoring.score_continuations(
            self.model,
            self.variables,
            pairs,
            batch_size=4,
            share_prefixes=share,
        )
      totals.append(sum(int(c.args[3].sum()) for c in prefill.call_args_list))
    once = sum(len(context) - 1 for context in self.contexts)
    self.assertEqual(totals, [once, 2 * once])

  def test_full_attention_begins_anew(self):
    ids = np.random.default_rng(1).integers(256, size=150).astype(np.int32)
    one, nothing = scoring.score_texts(
        self.model, self.variables, [ids, ids[:1]], batch_size=2
    )
    expected = sum(
        self.log_probs(window[:-1])[0].sum() + self.last(window)
        for window in scoring.windows(ids, 64)
    )
    self.assertAlmostEqual(one.log_prob, expected, delta=1e-3)
    self.assertEqual(nothing, scoring.Score(0.0, True))

  def last(self, window):
    """Returns log p of a window's last id, with all before it."""
    logits, _ = self.apply(self.variables, np.resize(window[:-1], (1, 64)))
    row = jax.nn.log_softmax(logits[0])[len(window) - 2]
    return float(row[window[-1]])

  def test_bad_input(self):
    ids = self.contexts[1]
    for pair, message in (
        ((ids[:0], ids), "Pair 0 has 0 ids of context"),
        ((ids, ids[:0]), "40 ids of context and 0 of continuation"),
        ((ids, ids), "holds max_length=64 tokens, but 39"),
        ((ids, ids[:3] + 300), "hold .* outside the vocabulary"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        scoring.score_continuations(
            self.model, self.variables, [pair], batch_size=1
        )


if __name__ == "__main__":
  absltest.main()
