# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every token of a text is scored once, as the model's logits have it."""

import functools
import math

from absl.testing import parameterized
import jax
import numpy as np

import titans_jax as titans
from titans_jax import tokenizers
from titans_jax.evaluation import perplexity
from titans_jax.evaluation import scoring


class WindowsTest(parameterized.TestCase):

  @parameterized.parameters(1, 3, 4, 11, 20)
  def test_every_token_is_predicted_once(self, length):
    ids = np.arange(12)
    predicted = np.concatenate(
        [window[1:] for window in scoring.windows(ids, length)]
    )
    np.testing.assert_array_equal(predicted, ids[1:])
    for window in scoring.windows(ids, length):
      self.assertBetween(len(window), 2, length + 1)


class ScoreTextTest(parameterized.TestCase):

  def test_is_what_the_logits_say(self):
    config = titans.presets.tiny(
        variant="transformer", num_layers=1, vocab_size=257, window=64
    )
    model = titans.TitansLM(config)
    variables = jax.jit(model.init)(
        jax.random.key(0), np.zeros((1, 8), np.int32)
    )
    texts = [b"one two three four five six", b"", b"seven"]
    tokenizer = tokenizers.ByteTokenizer()
    seen = []
    score = functools.partial(
        perplexity.score_text,
        model,
        variables,
        tokenizer,
        texts,
        length=12,
        batch_size=2,
    )
    scores = score(progress=seen.append)
    self.assertEqual(seen, sorted(seen))
    self.assertEqual(seen[-1], scores.count.sum())
    apply = jax.jit(model.apply)
    nats, correct, count = np.zeros(12), 0, np.zeros(12, int)
    for text in texts:
      if not text:
        continue
      ids = np.array([256, *text, 256], np.int32)
      for window in scoring.windows(ids, 12):
        padded = np.zeros((1, 12), np.int32)  # What stands behind is not seen.
        padded[0, : len(window) - 1] = window[:-1]
        logits, _ = apply(variables, padded)
        log_probs = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
        for i, target in enumerate(window[1:]):
          nats[i] -= log_probs[i, target]
          count[i] += 1
          correct += log_probs[i].argmax() == target
    np.testing.assert_allclose(scores.nats, nats, rtol=1e-4)
    np.testing.assert_array_equal(scores.count, count)
    self.assertEqual(scores.correct.sum(), correct)
    self.assertEqual(count.sum(), 28 + 6)
    self.assertEqual(scores.text_bytes, 27 + 5)
    self.assertAlmostEqual(
        scores.perplexity, math.exp(nats.sum() / 34), delta=0.1
    )
    self.assertAlmostEqual(
        scores.bits_per_byte, nats.sum() / math.log(2) / 32, places=3
    )
    rows = list(scores.by_position())
    self.assertEqual(
        [row[:2] for row in rows], [(1, 1), (2, 2), (3, 4), (5, 8), (9, 12)]
    )
    self.assertEqual(sum(row[3] for row in rows), 34)
    with self.subTest("the first tokens only"):
      some = score(max_tokens=13)
      self.assertEqual((some.count.sum(), some.text_bytes), (13, 13))

  def test_nothing_to_score(self):
    model = titans.TitansLM(titans.presets.tiny(vocab_size=257))
    with self.assertRaisesRegex(ValueError, "no text to score"):
      perplexity.score_text(
          model, {}, tokenizers.ByteTokenizer(), [b""], length=4, batch_size=1
      )
