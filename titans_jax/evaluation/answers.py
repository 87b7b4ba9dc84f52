# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions at the end of a text: training on them, and asking them."""

from __future__ import annotations

import hashlib
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import jax
import numpy as np

from titans_jax import inference
from titans_jax import parallel
from titans_jax.data import tokenizers
from titans_jax.models import language_model
from titans_jax.training import step as step_lib

Batch = dict[str, np.ndarray]

# Evaluation batches are drawn apart from all training steps.
_EVAL_STREAM = 2**31
_EVAL_BATCHES = 8


class Example(NamedTuple):
  """A text, the question at its end, and what is to follow.

  Attributes:
    context: tokens before the question, int32 [C], the document token first.
    question: tokens, int32 [Q].
    answer: tokens, int32 [A].
    asked: the question as text.
    target: what the answer must say.
  """

  context: np.ndarray
  question: np.ndarray
  answer: np.ndarray
  asked: str
  target: str

  @property
  def prompt(self) -> np.ndarray:
    """Context and question, int32 [C + Q]."""
    return np.concatenate([self.context, self.question])


class AnswerTask:
  """Questions at the end of texts and their answers, for the training loop.

  The tokens of both are scored, and the end behind them. (A question names what
  stood in the text: that it can be foretold is the first thing that a model
  learns of the text before it. With the answers alone training is slow to begin.)
  """

  def __init__(
      self,
      model: language_model.TitansLM,
      draw: Callable[[np.random.Generator, int], Example],
      tokenizer: tokenizers.Tokenizer,
      *,
      batch_size: int,
      lengths: tuple[int, int],
      seed: int,
      fingerprint: str,
  ):
    """Makes a task of a way to draw examples.

    Args:
      model: what is evaluated.
      draw: (rng, length) -> an example of `length` tokens, answer and all.
      tokenizer: of the examples.
      batch_size: rows of a batch.
      lengths: the least, and the most, which is what a row is padded to.
      seed: of the examples.
      fingerprint: of what `draw` depends on.
    """
    self.fingerprint = hashlib.sha256(
        repr(
            (fingerprint, tokenizer.fingerprint, batch_size, lengths, seed)
        ).encode()
    ).hexdigest()[:16]
    self._draw = draw
    self._end = tokenizer.document_token
    self._batch_size = batch_size
    self._lengths = lengths
    self._seed = seed
    self._eval_step = step_lib.jit_eval_step(model)

  def batches(self, first_step: int) -> Iterator[Batch]:
    step = first_step
    while True:
      yield self._batch(step)
      step += 1

  def evaluate(self, params: Any) -> dict[str, float]:
    """Returns the answers' loss, and the share of their tokens that are right.

    Both with the tokens before given.
    """
    totals: dict[str, float] = {}
    for i in range(_EVAL_BATCHES):
      batch = self._batch(_EVAL_STREAM + i, question=False)
      batch = parallel.place(batch, self._batch_size)
      sums, _ = self._eval_step(params, batch, None)
      for name, value in jax.device_get(sums).items():
        totals[name] = totals.get(name, 0.0) + float(value)
    return {
        "eval_loss": totals["nats"] / totals["num_tokens"],
        "eval_accuracy": totals["correct"] / totals["num_tokens"],
    }

  def _batch(self, stream: int, *, question: bool = True) -> Batch:
    """Draws a batch in which answers, and questions too, are scored."""
    rng = np.random.default_rng((self._seed, stream))
    least, most = self._lengths
    tokens = np.zeros((self._batch_size, most), np.int32)
    targets = np.full_like(tokens, -1)
    mask = np.zeros(tokens.shape, bool)
    for row in range(self._batch_size):
      example = self._draw(rng, int(rng.integers(least, most + 1)))
      text = np.concatenate(example[:3])
      tokens[row, : len(text)] = text
      mask[row, : len(text)] = True
      first = len(example.context if question else example.prompt) - 1
      targets[row, first : len(text)] = np.append(text[first + 1 :], self._end)
    return {
        "tokens": tokens,
        "targets": targets,
        "document_ids": np.zeros_like(tokens),
        "mask": mask,
    }


def ask(
    model: language_model.TitansLM,
    variables: Any,
    tokenizer: tokenizers.Tokenizer,
    prompts: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
) -> list[str]:
  """Returns what a model says behind prompts of any lengths, greedily."""
  lengths = np.array([len(prompt) for prompt in prompts])
  padded = np.zeros((len(prompts), lengths.max()), np.int32)
  for row, prompt in zip(padded, prompts):
    row[: len(prompt)] = prompt
  said = inference.generate(
      model,
      variables,
      padded,
      lengths=lengths,
      max_new_tokens=max_new_tokens,
      temperature=0.0,
      stop_token=tokenizer.document_token,
  )
  return [
      tokenizer.decode(row).decode("utf-8", errors="replace")
      for row in np.asarray(said)
  ]
