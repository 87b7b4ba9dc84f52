# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Perplexity of any text, by how many tokens stand before.

A document is the document token, its own tokens, and the document token that
ends it. It is cut into windows that share one token, so that every token of the
text is predicted exactly once, from those of its window before it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, Callable, Iterable, Iterator

import numpy as np

from titans_jax import tokenizers
from titans_jax.evaluation import scoring
from titans_jax.models import language_model


@dataclasses.dataclass
class Scores:
  """What a model gave a text.

  Attributes:
    nats: sum of -log p over the tokens that have p tokens before them in their
      window, for p = 1 to the windows' length: float64 [length].
    correct: of them, those that were the most likely ones: int64 [length].
    count: of them, all: int64 [length].
    text_bytes: length of the text.
  """

  nats: np.ndarray
  correct: np.ndarray
  count: np.ndarray
  text_bytes: int = 0

  @property
  def loss(self) -> float:
    """Nats per token."""
    return float(self.nats.sum() / self.count.sum())

  @property
  def perplexity(self) -> float:
    return math.exp(min(self.loss, 700))

  @property
  def accuracy(self) -> float:
    return float(self.correct.sum() / self.count.sum())

  @property
  def bits_per_byte(self) -> float:
    """Bits that the text takes, by its length in bytes."""
    return float(self.nats.sum() / math.log(2) / self.text_bytes)

  def by_position(self) -> Iterator[tuple[int, int, float, int]]:
    """Yields (first, last, nats per token, tokens) of positions in doubling
    ranges: 1, 2, 3 to 4, 5 to 8, and so on."""
    first, last = 1, 1
    while first <= len(self.count):
      here = slice(first - 1, min(last, len(self.count)))
      if count := int(self.count[here].sum()):
        yield first, here.stop, float(self.nats[here].sum() / count), count
      first, last = last + 1, 2 * last


def score_text(
    model: language_model.TitansLM,
    variables: Any,
    tokenizer: tokenizers.Tokenizer,
    texts: Iterable[bytes],
    *,
    length: int,
    batch_size: int,
    max_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scores:
  """Returns what a model gives texts.

  Args:
    model: the model.
    variables: its parameters.
    tokenizer: that it was trained with.
    texts: documents.
    length: tokens that a window's last one has before it.
    batch_size: windows at a time.
    max_tokens: of the text to score, from its beginning; None: all.
    progress: is told how many tokens have been scored, now and then.

  Raises:
    ValueError: there is no text, a window is longer than full attention holds,
      or the tokenizer has ids outside the vocabulary.
  """
  model.check_room(None, length)
  zeros = np.zeros(length, np.int64)
  scores = Scores(zeros.astype(np.float64), zeros.copy(), zeros)

  def all_windows():
    left = max_tokens
    for text in texts:
      if not text:
        continue
      ends = [tokenizer.document_token]
      ids = np.concatenate([ends, tokenizer.encode(text), ends])
      size = len(text)
      if left is not None:
        if len(ids) > left + 1:
          ids = ids[: left + 1]
          size = len(tokenizer.decode(ids))
        left -= len(ids) - 1
      scores.text_bytes += size
      yield from scoring.windows(ids.astype(np.int32), length)
      if left == 0:
        return

  found = all_windows()
  while batch := list(itertools.islice(found, batch_size)):
    rows = scoring.score_rows(model, variables, batch, batch_size=batch_size)
    for log_probs, correct in rows:
      here = slice(0, len(log_probs))
      scores.nats[here] -= log_probs
      scores.correct[here] += correct
      scores.count[here] += 1
    if progress is not None:
      progress(int(scores.count.sum()))
  if not scores.text_bytes:
    raise ValueError("There is no text to score.")
  return scores
