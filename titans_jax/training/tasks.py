# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model is trained on: batches by step, and an evaluation."""

from __future__ import annotations

import functools
import math
from typing import Any, Iterator, Protocol

import jax
import numpy as np

from titans_jax import data as data_lib
from titans_jax import parallel
from titans_jax.models import language_model
from titans_jax.training import step as step_lib

Batch = dict[str, np.ndarray]


class Task(Protocol):
  """What the training loop asks of a task, under the run's `jax.set_mesh`.

  Attributes:
    fingerprint: equal exactly for tasks with equal batches; a run goes on only
      on the task that it was started on.
  """

  fingerprint: str

  def batches(self, first_step: int) -> Iterator[Batch]:
    """Yields the batches of first_step, first_step + 1, and so on.

    Each is a function of its step alone: `tokens`, `targets` (negative: not
    scored), `document_ids` and `mask`, [B, T] each: all rows, or those that
    `parallel.row_group` gives this process.
    """

  def evaluate(self, params: Any) -> dict[str, float]:
    """Returns named numbers, `eval_loss` (nats per token) among them."""


class TextTask:
  """Next-token prediction on a corpus."""

  def __init__(
      self,
      model: language_model.TitansLM,
      corpus: data_lib.Corpus,
      *,
      batch_size: int,
      seed: int,
  ):
    self.fingerprint = corpus.fingerprint
    self.corpus = corpus
    self._batch_size = batch_size
    self._seed = seed
    self._eval_step = jax.jit(
        functools.partial(step_lib.eval_step, model=model)
    )

  def batches(self, first_step: int) -> Iterator[Batch]:
    index, count = parallel.row_group(self._batch_size)
    return data_lib.train_batches(
        self.corpus,
        batch_size=self._batch_size,
        seed=self._seed,
        first_step=first_step,
        process_index=index,
        process_count=count,
    )

  def evaluate(self, params: Any) -> dict[str, float]:
    """Returns loss, perplexity and bits per byte of the held-out text."""
    nats = tokens = 0.0
    index, count = parallel.row_group(self._batch_size)
    for batch in data_lib.heldout_batches(
        self.corpus,
        batch_size=self._batch_size,
        process_index=index,
        process_count=count,
    ):
      batch = parallel.place(batch, self._batch_size)
      sums = jax.device_get(self._eval_step(params, batch))
      nats += float(sums["nats"])
      tokens += float(sums["num_tokens"])
    return {
        "eval_loss": nats / tokens,
        "eval_perplexity": math.exp(min(nats / tokens, 700)),
        "eval_bits_per_byte": nats / math.log(2) / self.corpus.heldout_bytes,
    }
