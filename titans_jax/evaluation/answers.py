# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions at the end of a text: training on them, and asking them."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from titans_jax import inference
from titans_jax import tokenizers
from titans_jax.models import language_model
from titans_jax.training import config as config_lib
from titans_jax.training import step as step_lib
from titans_jax.training import tasks

Batch = dict[str, np.ndarray]

_EVAL_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class AnswerData:
  """What is trained on: the section `data` of such a run, but for its questions.

  Attributes:
    haystack: source of the text around what is asked for, as
      `DataConfig.source`.
    tokenizer: as `DataConfig.tokenizer`.
    sequence_length: tokens of the longest text, question and answer included.
    least_length: of the shortest; lengths between are as likely.
    batch_size: texts per step.
  """

  haystack: str = "builtin"
  tokenizer: str = "byte"
  sequence_length: int = 512
  least_length: int = 256
  batch_size: int = 16

  def __post_init__(self):
    config_lib.check_lengths(self)


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
      data: AnswerData,
      *,
      seed: int,
      fingerprint: str,
  ):
    """Makes a task of a way to draw examples.

    Args:
      model: what is evaluated.
      draw: (rng, length) -> an example of `length` tokens, answer and all.
      tokenizer: of the examples.
      data: sizes; rows are padded to the longest text.
      seed: of the examples.
      fingerprint: of what `draw` depends on.
    """
    lengths = data.least_length, data.sequence_length
    self.fingerprint = tasks.fingerprint(
        (fingerprint, tokenizer.fingerprint, data.batch_size, lengths, seed)
    )
    self._draw = draw
    self._end = tokenizer.document_token
    self._batch_size = data.batch_size
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
    batches = (
        self._batch(tasks.EVAL_STREAM + i, question=False)
        for i in range(_EVAL_BATCHES)
    )
    found = tasks.measure(self._eval_step, params, batches, self._batch_size)
    return {f"eval_{name}": value for name, value in found.items()}

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
  padded, lengths = inference.pad_prompts(prompts)
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
