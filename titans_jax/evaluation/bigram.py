# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A bigram byte model: what a language model must beat."""

from __future__ import annotations

import math

import numpy as np

from titans_jax import tokenizers
from titans_jax.data import corpus as corpus_lib


def bits_per_byte(
    corpus: corpus_lib.Corpus, tokenizer: tokenizers.Tokenizer
) -> float:
  """Returns a bigram byte model's bits per byte on the held-out text.

  Counts come from the training text. Each byte's distribution given the one
  before is mixed with the distribution of bytes, with the weight that is best
  on the held-out text itself: the baseline gets the benefit of the doubt.
  """
  train = _pairs(corpus, corpus.train, tokenizer)
  heldout = _pairs(corpus, corpus.heldout, tokenizer)
  # How often a byte occurs at all, each given one occurrence for free.
  single = train.sum(axis=0) + 1
  single = single / single.sum()
  contexts = train.sum(axis=1, keepdims=True)
  best = math.inf
  for weight in (0.1, 0.3, 1, 3, 10, 30, 100):
    probability = (train + weight * single) / (contexts + weight)
    best = min(best, -(heldout * np.log2(probability)).sum() / heldout.sum())
  return float(best)


def _pairs(corpus, plan, tokenizer) -> np.ndarray:
  """Counts (byte, next byte) over a plan's pieces, float64 [256, 256]."""
  counts = np.zeros((256, 256))
  for start, length, _ in plan.pieces:
    text = tokenizer.decode(corpus.tokens[start : start + length + 1])
    text = np.frombuffer(text, np.uint8)
    np.add.at(counts, (text[:-1], text[1:]), 1)
  return counts
