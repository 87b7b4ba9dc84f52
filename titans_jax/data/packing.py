# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Packing of documents into sequences, planned ahead as an index.

A document begins at a multiple of the unit (the chunk; for MAC the segment),
where the memory starts again; one longer than a sequence is cut. The plan says
where each piece goes, so that any sequence can be put together on its own and
the share of padding is known before training.
"""

from __future__ import annotations

import bisect
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where every piece of every document goes.

  Attributes:
    pieces: int64 [P, 3], (first token, number of tokens, place in the
      sequence), sorted by sequence and place.
    offsets: int64 [S + 1]; sequence s holds pieces[offsets[s] : offsets[s + 1]].
    sequence_length: T.
  """

  pieces: np.ndarray
  offsets: np.ndarray
  sequence_length: int

  @property
  def num_sequences(self) -> int:
    return len(self.offsets) - 1

  @property
  def num_tokens(self) -> int:
    return int(self.pieces[:, 1].sum())

  @property
  def padding(self) -> float:
    """The share of places that hold no token."""
    return 1 - self.num_tokens / (self.num_sequences * self.sequence_length)


def plan(
    starts: np.ndarray, lengths: np.ndarray, sequence_length: int, unit: int
) -> Plan:
  """Packs documents by best fit, longest first.

  Args:
    starts: int64 [N], the first token of each document.
    lengths: int64 [N], its number of tokens, at least 1.
    sequence_length: T, a multiple of the unit.
    unit: documents begin at its multiples.

  Raises:
    ValueError: T is not a multiple of the unit.
  """
  if sequence_length % unit:
    raise ValueError(
        f"data.sequence_length={sequence_length} is not a multiple of {unit},"
        " the tokens between the places where a document may start (the chunk;"
        " for MAC the segment)."
    )
  sequences = []
  rests = []
  for start, length in zip(starts.tolist(), lengths.tolist()):
    whole = length // sequence_length
    for i in range(whole):
      first = start + i * sequence_length
      sequences.append([(first, sequence_length, 0)])
    if length % sequence_length:
      rests.append((start + whole * sequence_length, length % sequence_length))
  # Longest first; the first token breaks ties, so that the plan is unique.
  rests.sort(key=lambda piece: (-piece[1], piece[0]))
  # (free places, sequence), sorted: the tightest fit is found by bisection.
  free: list[tuple[int, int]] = []
  for first, length in rests:
    places = -(-length // unit) * unit
    at = bisect.bisect_left(free, (places, -1))
    if at == len(free):
      free_places, sequence = sequence_length, len(sequences)
      sequences.append([])
    else:
      free_places, sequence = free.pop(at)
    place = sequence_length - free_places
    sequences[sequence].append((first, length, place))
    if free_places > places:
      bisect.insort(free, (free_places - places, sequence))
  counts = [len(pieces) for pieces in sequences]
  flat = [piece for pieces in sequences for piece in pieces]
  return Plan(
      pieces=np.array(flat, np.int64).reshape(-1, 3),
      offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
      sequence_length=sequence_length,
  )


def assemble(
    packed: Plan, sequence: int, tokens: np.ndarray, document_token: int
) -> dict[str, np.ndarray]:
  """Returns one packed sequence.

  Args:
    packed: the plan.
    sequence: which one.
    tokens: all documents, each led by the document token; one more document
      token stands at the end.
    document_token: see `tokenizers.Tokenizer`.

  Returns:
    `tokens`, `targets` (the token that follows; -1 at padding) and
    `document_ids`, int32 [T], and `mask`, bool [T].
  """
  size = packed.sequence_length
  example = {
      "tokens": np.full(size, document_token, np.int32),
      "targets": np.full(size, -1, np.int32),
      "document_ids": np.zeros(size, np.int32),
      "mask": np.zeros(size, bool),
  }
  first, last = packed.offsets[sequence : sequence + 2]
  for number, piece in enumerate(packed.pieces[first:last]):
    start, length, place = piece.tolist()
    here = slice(place, place + length)
    # A document's last target is the next one's document token: its own end.
    example["tokens"][here] = tokens[start : start + length]
    example["targets"][here] = tokens[start + 1 : start + length + 1]
    example["document_ids"][place:] = number
    example["mask"][here] = True
  return example
