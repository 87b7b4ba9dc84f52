# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Classification of DNA for the training loop: sequences with labels, and a task
that is made on the fly.

The motif task: two motifs lie far apart in random bases, and the class says which
one is first. What is averaged over a sequence cannot tell (both motifs are in every
sequence) unless something brought the first motif to the second.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import parallel
from titans_jax.data import genomes
from titans_jax.training import config as config_lib
from titans_jax.training import step as step_lib
from titans_jax.training import tasks

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class GenomicsData:
  """What is trained on: the section `data` of such a run.

  Attributes:
    sequence_length: bases that a row holds; longer sequences are cut at their
      end.
    batch_size: sequences per step.
    epochs: how often every sequence is seen.
    reverse_complement: whether half of the sequences of a batch are read from
      the other strand.
    heldout_fraction: share of the training sequences that is only evaluated on.
  """

  sequence_length: int = 512
  batch_size: int = 32
  epochs: int = 20
  reverse_complement: bool = True
  heldout_fraction: float = 0.1

  def __post_init__(self):
    config_lib.check_at_least(
        self, "data", 1, "sequence_length", "batch_size", "epochs"
    )
    if not 0 < self.heldout_fraction < 1:
      raise ValueError(
          "data.heldout_fraction must lie between 0 and 1, got"
          f" {self.heldout_fraction}."
      )

  def num_heldout(self, count: int) -> int:
    """Returns how many of `count` sequences are held out."""
    return max(round(self.heldout_fraction * count), 1)

  def steps_per_epoch(self, count: int) -> int:
    """Returns an epoch's batches; sequences that do not fill one are left out.

    Args:
      count: sequences, those held out included.

    Raises:
      ValueError: too few for one batch.
    """
    trained = count - self.num_heldout(count)
    if trained < self.batch_size:
      raise ValueError(
          f"data.batch_size={self.batch_size} is more than the {trained}"
          " sequences to train on."
      )
    return trained // self.batch_size


class GenomicsTask:
  """Labelled sequences in random order, every one once an epoch."""

  def __init__(
      self,
      model: step_lib.Model,
      sequences: genomes.Sequences,
      data: GenomicsData,
      *,
      seed: int,
  ):
    """Holds some sequences out.

    Raises:
      ValueError: too few are left for a batch.
    """
    self._sequences = sequences
    self._data = data
    self._seed = seed
    self.fingerprint = tasks.fingerprint((sequences.fingerprint, data, seed))
    order = np.random.default_rng((seed, 0)).permutation(len(sequences.labels))
    heldout = data.num_heldout(len(order))
    self._heldout, self._train = order[:heldout], order[heldout:]
    data.steps_per_epoch(len(order))  # There is one.
    self._sums = jax.jit(functools.partial(_sums, model))

  def batches(self, first_step: int) -> Iterator[Batch]:
    data = self._data
    chosen = tasks.shuffled(
        self._train, data.batch_size, first_step, self._seed, 1
    )
    for step, places in enumerate(chosen, first_step):
      rng = np.random.default_rng((self._seed, 2, step))
      turned = rng.random(data.batch_size) < 0.5 * data.reverse_complement
      yield _rows(self._sequences, places, turned, data.sequence_length)

  def evaluate(self, params: Any) -> dict[str, float]:
    """Returns loss (nats) and accuracy on the sequences held out."""
    found = self._of_all(params, self._sequences, self._heldout)
    return {f"eval_{name}": value for name, value in found.items()}

  def measure(
      self,
      params: Any,
      sequences: genomes.Sequences,
      length: int | None = None,
  ) -> dict[str, float]:
    """Returns `loss` and `accuracy` (top-1) on a set of sequences.

    Args:
      params: of the model.
      sequences: with the classes that were trained on.
      length: bases that a row holds; None: as in training.
    """
    places = np.arange(len(sequences.labels))
    return self._of_all(params, sequences, places, length)

  def _of_all(self, params, sequences, places, length=None):
    size = self._data.batch_size
    length = length or self._data.sequence_length

    totals = np.zeros(3)
    for rows, counted in tasks.padded(places, size):
      batch = _rows(sequences, rows, np.zeros(size, bool), length)
      batch["labels"][counted:] = -1
      totals += np.asarray(self._sums(params, parallel.place(batch, size)))
    loss, accuracy = totals[:2] / totals[2]
    return {"loss": float(loss), "accuracy": float(accuracy)}


def _rows(sequences, places, turned, length: int) -> Batch:
  """Returns sequences as rows, those of `turned` from the other strand."""
  tokens = np.full((len(places), length), genomes.PAD, np.int32)
  lengths = np.zeros(len(places), np.int32)
  for row, (place, turn) in enumerate(zip(places, turned)):
    sequence = sequences.tokens[place][:length]
    if turn:
      sequence = genomes.reverse_complement(sequence)
    tokens[row, : len(sequence)] = sequence
    lengths[row] = len(sequence)
  return {
      "tokens": tokens,
      "labels": sequences.labels[places].copy(),
      "lengths": lengths,
  }


# Neither is the other's, or its own, reverse complement: the other strand of a
# sequence shows other motifs, and its class is still to be seen.
MOTIFS = ("TTGACCTGAA", "CGGATTACGC")
_MOTIFS = np.stack([genomes.encode(motif, "motif") for motif in MOTIFS])
_SITE = _MOTIFS.shape[1]
# Bases of the shortest sequence that holds them.
LEAST = 4 * _SITE


def make_motifs(
    count: int, least: int, most: int, rng: np.random.Generator
) -> genomes.Sequences:
  """Draws sequences of the motif task.

  The first site lies in a sequence's first quarter, the second in its last, so
  that half of it and more lies between.

  Args:
    count: sequences.
    least: bases of the shortest.
    most: of the longest; lengths between are as likely.
    rng: what to draw from.

  Raises:
    ValueError: the shortest does not hold the sites.
  """
  if not LEAST <= least <= most:
    raise ValueError(
        f"A sequence of {least} bases does not hold the two sites: at least"
        f" {LEAST} are needed."
    )
  labels = rng.integers(2, size=count).astype(np.int32)
  sequences = []
  for label in labels:
    length = int(rng.integers(least, most + 1))
    tokens = rng.integers(4, size=length).astype(np.uint8)
    room = length // 4 - _SITE + 1
    for start, motif in ((0, label), (length - length // 4, 1 - label)):
      place = start + int(rng.integers(room))
      tokens[place : place + _SITE] = _MOTIFS[motif]
    sequences.append(tokens)
  fingerprint = tasks.fingerprint(
      [tokens.tobytes() for tokens in sequences] + [labels.tobytes()]
  )
  return genomes.Sequences(sequences, labels, MOTIFS, fingerprint)


def least_distance(length: int) -> int:
  """Returns the bases between the sites of a sequence, at least."""
  return length - 2 * (length // 4)


def _sums(model, params, batch):
  """Returns a batch's loss, right answers and sequences, summed."""
  loss, metrics, _ = model.apply({"params": params}, **batch, method="loss")
  count = metrics["num_tokens"]
  return jnp.stack([loss * count, metrics["accuracy"] * count, count])
