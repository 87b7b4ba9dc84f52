# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches of packed sequences, by step."""

from __future__ import annotations

from typing import Iterator

import grain
import numpy as np

from titans_jax.data import corpus as corpus_lib
from titans_jax.data import packing

Batch = dict[str, np.ndarray]


def train_batches(
    corpus: corpus_lib.Corpus,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
  """Yields the batch of first_step, first_step + 1, and so on without end.

  The global batch of a step depends on the corpus, the seed and the step alone,
  whatever the number of processes; each process gets its rows of it.

  Args:
    corpus: the packed text.
    batch_size: rows of the global batch, a multiple of process_count.
    seed: of the order, which differs from epoch to epoch.
    first_step: where to begin: a run resumes with the number of its next step.
    process_index: of this process.
    process_count: of all processes.

  Returns:
    Batches as `packing.assemble` makes them, with a leading axis
    [batch_size / process_count].
  """
  if batch_size % process_count:
    raise ValueError(
        f"data.batch_size={batch_size} is not a multiple of the"
        f" {process_count} processes."
    )
  mine = _rows(batch_size, process_index, process_count)
  dataset = (
      grain.MapDataset.range(corpus.train.num_sequences)
      .seed(seed)
      .shuffle()
      .repeat()
      .batch(batch_size, drop_remainder=True)
      .map(lambda rows: _stack(corpus, corpus.train, rows[mine]))
  )
  # Threads: worker processes would each keep a state of their own.
  read = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
  iterator = iter(dataset.to_iter_dataset(read))
  iterator.set_state({"next_index": first_step})
  return iterator


def heldout_batches(
    corpus: corpus_lib.Corpus,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
  """Yields every held-out sequence once; the last batch ends in empty rows."""
  plan = corpus.heldout
  mine = _rows(batch_size, process_index, process_count)
  for first in range(0, plan.num_sequences, batch_size):
    rows = np.arange(first, first + batch_size)[mine]
    batch = _stack(corpus, plan, np.minimum(rows, plan.num_sequences - 1))
    batch["targets"][rows >= plan.num_sequences] = -1
    yield batch


def _rows(batch_size: int, process_index: int, process_count: int) -> slice:
  """Returns which rows of a global batch are a process's: those next to each
  other, so that a row's place does not depend on the number of processes."""
  rows = batch_size // process_count
  return slice(process_index * rows, process_index * rows + rows)


def _stack(
    corpus: corpus_lib.Corpus, plan: packing.Plan, sequences: np.ndarray
) -> Batch:
  examples = [
      packing.assemble(plan, s, corpus.tokens, corpus.document_token)
      for s in sequences.tolist()
  ]
  return {
      name: np.stack([example[name] for example in examples])
      for name in examples[0]
  }
