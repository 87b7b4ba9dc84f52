# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model is trained on: batches by step, and an evaluation."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from typing import Any, Iterable, Iterator, Protocol

import jax
import numpy as np

from titans_jax import data as data_lib
from titans_jax import parallel
from titans_jax.models import language_model
from titans_jax.training import config as config_lib
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

    Each is a function of its step alone, and holds arrays [B, ...] by the names
    of the arguments of the model's `loss`: all rows, or those that
    `parallel.row_group` gives this process.
    """

  def evaluate(self, params: Any) -> dict[str, float]:
    """Returns named numbers, `eval_loss` (nats per token) among them."""


# The tasks that draw their batches draw evaluation apart from all training steps.
EVAL_STREAM = 2**31


def fingerprint(value: Any) -> str:
  """Returns a short name of a value, equal exactly where its repr is."""
  return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def shuffled(
    items: np.ndarray, batch_size: int, first_step: int, *seed: int
) -> Iterator[np.ndarray]:
  """Yields the items of the batches first_step, first_step + 1, and so on.

  Every item comes once an epoch at most; those that do not fill a batch are left
  out.

  Args:
    items: [N], at least batch_size.
    batch_size: items of a batch.
    first_step: of the first batch.
    *seed: of the order.
  """
  steps = len(items) // batch_size
  epoch, place = divmod(first_step, steps)
  for number in itertools.count(epoch):
    order = np.random.default_rng((*seed, number)).permutation(items)
    for i in range(place, steps):
      yield order[i * batch_size : (i + 1) * batch_size]
    place = 0


def padded(
    items: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, int]]:
  """Yields all items in batches of one size, and how many of each count: the
  last one is filled with items that do not."""
  for first in range(0, len(items), batch_size):
    some = items[first : first + batch_size]
    yield np.resize(some, batch_size), len(some)


def measure(
    eval_step, params: Any, batches: Iterable[Batch], batch_size: int
) -> dict[str, float]:
  """Measures batches that know nothing of each other.

  Args:
    eval_step: of `step.jit_eval_step`.
    params: of the model.
    batches: as `Task.batches` yields them, finitely many.
    batch_size: rows of each.

  Returns:
    `loss` (nats) and `accuracy`, over all scored tokens.
  """
  totals: dict[str, float] = {}
  for batch in batches:
    sums, _ = eval_step(params, parallel.place(batch, batch_size), None)
    for name, value in jax.device_get(sums).items():
      totals[name] = totals.get(name, 0.0) + float(value)
  return {
      "loss": totals["nats"] / totals["num_tokens"],
      "accuracy": totals["correct"] / totals["num_tokens"],
  }


def prepare_corpus(
    run: config_lib.RunConfig,
    tokenizer: Any,
    directory: str | os.PathLike[str],
) -> data_lib.Corpus:
  """Returns the packed text of a run, as `data.prepare` keeps it."""
  return data_lib.prepare(
      run.data.source,
      tokenizer,
      directory,
      sequence_length=run.data.segments * run.data.sequence_length,
      unit=run.model.unit,
      heldout_fraction=run.data.heldout_fraction,
      max_heldout_sequences=run.data.max_heldout_sequences,
  )


class TextTask:
  """Next-token prediction on a corpus."""

  def __init__(
      self,
      model: language_model.TitansLM,
      corpus: data_lib.Corpus,
      *,
      batch_size: int,
      seed: int,
      segments: int = 1,
  ):
    """Reads a corpus.

    Args:
      model: what is evaluated.
      corpus: packed text.
      batch_size: rows of a batch.
      seed: of the order.
      segments: batches that a packed sequence is cut into, as
        `DataConfig.segments`.
    """
    self.fingerprint = corpus.fingerprint
    self.corpus = corpus
    self._batch_size = batch_size
    self._seed = seed
    self._segments = segments
    self._model = model
    self._eval_step = step_lib.jit_eval_step(model)

  def batches(self, first_step: int) -> Iterator[Batch]:
    index, count = parallel.row_group(self._batch_size)
    first, skip = divmod(first_step, self._segments)
    whole = data_lib.train_batches(
        self.corpus,
        batch_size=self._batch_size,
        seed=self._seed,
        first_step=first,
        process_index=index,
        process_count=count,
    )
    if self._segments == 1:
      return whole
    return itertools.islice(self._in_segments(whole, first), skip, None)

  def _in_segments(self, whole: Iterator[Batch], first: int) -> Iterator[Batch]:
    for number, batch in enumerate(whole, first):
      # A sequence's first document is another than the last of the one before.
      batch["document_ids"] = batch["document_ids"] + number % 2 * 2**30
      yield from self._cut(batch)

  def _cut(self, batch: Batch) -> Iterator[Batch]:
    """Yields a batch's segments, [B, T] each."""
    length = batch["tokens"].shape[1] // self._segments
    for i in range(self._segments):
      yield {
          name: np.ascontiguousarray(x[:, i * length : (i + 1) * length])
          for name, x in batch.items()
      }

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
      state = None
      if self._segments > 1:
        state = step_lib.fresh_model_state(
            self._model, params, self._batch_size
        )
      for segment in self._cut(batch):
        segment = parallel.place(segment, self._batch_size)
        sums, state = self._eval_step(params, segment, state)
        sums = jax.device_get(sums)
        nats += float(sums["nats"])
        tokens += float(sums["num_tokens"])
    return {
        "eval_loss": nats / tokens,
        "eval_perplexity": math.exp(min(nats / tokens, 700)),
        "eval_bits_per_byte": nats / math.log(2) / self.corpus.heldout_bytes,
    }
