# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sentences hidden in text."""

from absl.testing import parameterized
import numpy as np

from titans_jax import data
from titans_jax.evaluation import haystacks

_TEXT = b"One two. Three four five! Six?\nSeven eight nine ten. Eleven."
_NEEDLE = b" HERE."


class HaystackTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.tokenizer = data.ByteTokenizer()
    self.haystack = haystacks.Haystack([_TEXT], self.tokenizer)

  def hide(self, depths, length, seed=0):
    needle = self.tokenizer.encode(_NEEDLE)
    rng = np.random.default_rng(seed)
    tokens = self.haystack.hide([needle] * len(depths), depths, length, rng)
    self.assertLen(tokens, length)
    return self.tokenizer.decode(tokens)

  @parameterized.parameters(20, 61, 500)
  def test_needles_stand_between_sentences(self, length):
    whole = b" " + b" ".join(_TEXT.split())
    for seed in range(20):
      for depth in (0.0, 0.3, 1.0):
        text = self.hide([depth], length, seed)
        before, needle, after = text.partition(_NEEDLE)
        self.assertEqual(needle, _NEEDLE)
        # The text around it is as it was, over and over again.
        self.assertIn(before + after, whole * 12)
        self.assertTrue(not before or before[-1:] in b".!?" or not after)
        if depth == 0:
          self.assertEqual(before, b"")
        if depth == 1:
          self.assertLess(len(after), 24)

  def test_needles_keep_their_order_and_share(self):
    text = self.hide([0.0, 0.5, 1.0], 2000)
    places = [i for i in range(2000) if text.startswith(_NEEDLE, i)]
    np.testing.assert_allclose(np.array(places) / 2000, [0, 0.5, 1], atol=0.02)

  def test_depths_are_spread_evenly(self):
    places = [
        self.hide([depth], 10_000).index(_NEEDLE) / 10_000
        for depth in np.linspace(0, 1, 11)
    ]
    np.testing.assert_allclose(places, np.linspace(0, 1, 11), atol=0.01)

  def test_text_without_sentences_is_cut_at_spaces(self):
    words = b" ".join(b"word%d" % i for i in range(500))
    haystack = haystacks.Haystack([words, b"x" * 1000], self.tokenizer)
    rng = np.random.default_rng(1)
    tokens = haystack.hide([self.tokenizer.encode(_NEEDLE)], [0.5], 3000, rng)
    before, _, after = self.tokenizer.decode(tokens).partition(_NEEDLE)
    self.assertRegex(before, rb"(word\d+|x)$")
    self.assertRegex(after, rb"^ (word|x)")

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, "2 sentences of 12 tokens do not"):
      self.hide([0.0, 1.0], 11)
    with self.assertRaisesRegex(ValueError, "holds no text"):
      haystacks.Haystack([b" \n "], self.tokenizer)
    with self.assertRaisesRegex(ValueError, "matches no file"):
      haystacks.read("/nowhere/at/all", self.tokenizer)
