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
  dataset = (
      grain.MapDataset.range(corpus.train.num_sequences)
      .seed(seed)
      .shuffle()
      .repeat()
      .map(
          lambda sequence: packing.assemble(
              corpus.train, sequence, corpus.tokens, corpus.document_token
          )
      )
  )
  dataset = dataset[process_index::process_count]
  dataset = dataset.batch(batch_size // process_count, drop_remainder=True)
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
  rows = batch_size // process_count
  for first in range(0, plan.num_sequences, batch_size):
    mine = range(
        first + process_index * rows, first + process_index * rows + rows
    )
    examples = [
        packing.assemble(
            plan,
            min(sequence, plan.num_sequences - 1),
            corpus.tokens,
            corpus.document_token,
        )
        for sequence in mine
    ]
    batch = {
        name: np.stack([example[name] for example in examples])
        for name in examples[0]
    }
    empty = np.array([s >= plan.num_sequences for s in mine])
    batch["targets"][empty] = -1
    yield batch
