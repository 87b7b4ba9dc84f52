# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tokenised corpus on disk, its held-out split and its packing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile

from absl import logging
import numpy as np

from titans_jax import files
from titans_jax import tokenizers
from titans_jax.data import packing
from titans_jax.data import prepared
from titans_jax.data import sources

# Increased when the files below change their form or meaning.
_VERSION = 2

# With fewer documents than this the held-out split is the tail of each.
_MIN_DOCUMENTS = 10


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Tokens on disk, and the plans that pack them.

  Attributes:
    tokens: all documents, each led by the document token; one more at the end.
    train: the plan of the documents to train on.
    heldout: that of the held-out ones.
    heldout_bytes: bytes of text that the held-out plan's targets stand for.
    fingerprint: equal exactly for equal text, tokenizer, split and packing.
    document_token: see `tokenizers.Tokenizer`.
  """

  tokens: np.ndarray
  train: packing.Plan
  heldout: packing.Plan
  heldout_bytes: int
  fingerprint: str
  document_token: int

  def summary(self) -> str:
    """Returns what a user wants to know before training, in a line."""
    return (
        f"train: {self.train.num_tokens:,} tokens in"
        f" {self.train.num_sequences:,} sequences of"
        f" {self.train.sequence_length:,}, {self.train.padding:.1%} padding;"
        f" held out: {self.heldout.num_tokens:,} tokens in"
        f" {self.heldout.num_sequences:,}, {self.heldout.padding:.1%} padding"
    )


def prepare(
    source: str,
    tokenizer: tokenizers.Tokenizer,
    directory: str | os.PathLike[str],
    *,
    sequence_length: int,
    unit: int,
    heldout_fraction: float = 0.1,
    max_heldout_sequences: int | None = None,
) -> Corpus:
  """Tokenises, splits and packs a source, or opens what was prepared before.

  In `directory` it keeps `tokens.bin` with `documents.npz` and `corpus.json`,
  which are made again when the source's files or the tokenizer have changed,
  and beside them `index-T-UNIT-....npz`, the packing, with the hash of the text
  and its own. Files are replaced whole: a run that reads them goes on with what
  it opened.

  Args:
    source: as in `sources.documents`.
    tokenizer: encodes the documents.
    directory: where the files are kept.
    sequence_length: T.
    unit: documents begin at its multiples.
    heldout_fraction: share of the tokens that is held out: whole documents,
      chosen by the hash of their text; of a few documents the tail of each.
    max_heldout_sequences: evaluate on no more than these; None: on all.

  Raises:
    ValueError: a source that cannot be read, or text too short to fill a
      sequence.
  """
  if not 0 < heldout_fraction < 1:
    raise ValueError(
        "data.heldout_fraction must lie between 0 and 1, got"
        f" {heldout_fraction}."
    )
  if max_heldout_sequences is not None and max_heldout_sequences < 1:
    raise ValueError(
        "data.max_heldout_sequences must be at least 1 or None, got"
        f" {max_heldout_sequences}."
    )
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  origin = _origin(source, tokenizer)
  meta = _tokenized(directory, origin)
  if meta is None:
    meta = _tokenize(source, tokenizer, directory, origin)
  tokens = np.memmap(directory / "tokens.bin", dtype=meta["dtype"], mode="r")
  documents = np.load(directory / "documents.npz")
  index = f"index-{sequence_length}-{unit}-{heldout_fraction}.npz"
  plans = _read_index(directory / index, meta["content"], sequence_length)
  if plans is None:
    plans = _plan(source, documents, sequence_length, unit, heldout_fraction)
    _write_index(directory / index, meta["content"], *plans)
  train, heldout = plans
  heldout = _first_sequences(heldout, max_heldout_sequences)
  return Corpus(
      tokens=tokens,
      train=train,
      heldout=heldout,
      heldout_bytes=_text_bytes(heldout, documents),
      fingerprint=f"{meta['content'][:16]}-{_hash_plans(train, heldout)[:16]}",
      document_token=tokenizer.document_token,
  )


def _plan(
    source, documents, sequence_length, unit, heldout_fraction
) -> tuple[packing.Plan, packing.Plan]:
  """Splits and packs the documents, to train on and held out."""
  train, heldout = _split(
      documents["starts"],
      documents["lengths"],
      documents["digests"],
      heldout_fraction,
  )
  needed = sequence_length + 1
  for name, lengths in (("training", train[1]), ("held-out", heldout[1])):
    if lengths.sum() == 0:
      raise ValueError(
          f"data.source={source!r} leaves nothing for the {name} split."
      )
  if train[1].sum() < needed:
    raise ValueError(
        f"data.source={source!r} holds {train[1].sum():,} tokens to train on,"
        f" fewer than one sequence of {sequence_length:,}. Choose a smaller"
        " data.sequence_length (or data.segments), or more text."
    )
  return (
      packing.plan(train[0], train[1], sequence_length, unit),
      packing.plan(heldout[0], heldout[1], sequence_length, unit),
  )


def _text_bytes(plan: packing.Plan, documents) -> int:
  """Returns the bytes of text that a plan's targets stand for.

  A document that is cut counts with its share of tokens: a tokenizer's pieces
  need not be whole characters.
  """
  starts, lengths = documents["starts"], documents["lengths"]
  first, count = plan.pieces[:, 0], plan.pieces[:, 1]
  document = np.searchsorted(starts, first, side="right") - 1
  ends = first + count == (starts + lengths)[document]
  text = np.maximum(lengths[document] - 1, 1)  # all but the document token
  return round(
      float(np.sum(documents["sizes"][document] * (count - ends) / text))
  )


def _origin(source: str, tokenizer: tokenizers.Tokenizer) -> dict:
  """Returns what tells whether the tokens on disk are up to date."""
  if prepared.is_prepared(source):
    shards = prepared.shard_files(source)
    inputs = [sources.version(source, path) for path in shards]
  else:
    inputs = sources.versions(source)
  return {
      "version": _VERSION,
      "files": inputs,
      "tokenizer": tokenizer.fingerprint,
  }


def _tokenized(directory: pathlib.Path, origin: dict) -> dict | None:
  """Returns the description of tokens on disk, if they are of this origin."""
  try:
    meta = json.loads((directory / "corpus.json").read_text())
  except (FileNotFoundError, json.JSONDecodeError):
    return None
  return meta if meta["origin"] == origin else None


def _tokenize(source, tokenizer, directory, origin) -> dict:
  """Writes tokens.bin, documents.npz and, when they are whole, corpus.json."""
  dtype = tokenizers.id_dtype(tokenizer)
  mark = np.array([tokenizer.document_token], dtype)
  starts, lengths, sizes, digests = [], [], [], []
  content = hashlib.sha256(tokenizer.fingerprint.encode())
  position = 0
  with files.replacing(directory / "tokens.bin") as file:
    for digest, size, tokens in _documents(source, tokenizer):
      content.update(digest)
      ids = np.concatenate([mark, tokens])
      file.write(ids.tobytes())
      starts.append(position)
      lengths.append(len(ids))
      sizes.append(size)
      digests.append(digest[:8])
      position += len(ids)
    file.write(mark.tobytes())
    if not starts:
      raise ValueError(f"data.source={source!r} holds no text.")
  with files.replacing(directory / "documents.npz") as file:
    np.savez(
        file,
        starts=np.array(starts, np.int64),
        lengths=np.array(lengths, np.int64),
        sizes=np.array(sizes, np.int64),
        digests=np.frombuffer(b"".join(digests), ">u8"),
    )
  meta = {
      "origin": origin,
      "content": content.hexdigest(),
      "dtype": dtype.name,
  }
  files.replace(directory / "corpus.json", json.dumps(meta, indent=2))
  logging.info("Tokenised %s documents, %s tokens.", len(starts), position)
  return meta


def _documents(source, tokenizer):
  """Returns (SHA-256, bytes of text, ids) of each of the documents with text."""
  if prepared.is_prepared(source):
    return prepared.documents(source, tokenizer)
  return tokenizers.encode_all(sources.documents(source), tokenizer)


def _split(starts, lengths, digests, fraction):
  """Returns (starts, lengths) to train on, and those held out."""
  if len(starts) < _MIN_DOCUMENTS:
    # The tail's first token, which is only read there, is the head's target.
    tails = np.ceil(lengths * fraction).astype(np.int64) + 1
    heads = np.maximum(lengths - tails, 0)
    return _nonempty(starts, heads), _nonempty(starts + heads, lengths - heads)
  # By the hash of the text: the choice survives another order of the files, and
  # copies of a document stand on one side.
  texts, text_of = np.unique(digests, return_inverse=True)
  tokens = np.bincount(text_of, weights=lengths)
  target = fraction * lengths.sum()
  held = np.zeros(len(texts), bool)
  total = 0
  for i, count in enumerate(tokens):
    if total + count <= target:
      held[i] = True
      total += count
  if not held.any():
    held[np.argmin(tokens)] = True
  chosen = held[text_of]
  return (
      (starts[~chosen], lengths[~chosen]),
      (starts[chosen], lengths[chosen]),
  )


def _nonempty(starts, lengths):
  return starts[lengths > 0], lengths[lengths > 0]


def _read_index(
    path: pathlib.Path, content: str, sequence_length: int
) -> tuple[packing.Plan, packing.Plan] | None:
  """Returns the packing on disk, if it is whole and that of this text."""
  try:
    with np.load(path) as saved:

      def read(name):
        return packing.Plan(
            saved[f"{name}_pieces"], saved[f"{name}_offsets"], sequence_length
        )

      plans = read("train"), read("heldout")
      if saved["content"] == content and saved["hash"] == _hash_plans(*plans):
        return plans
  except (OSError, ValueError, KeyError, zipfile.BadZipFile):
    pass  # none yet, or a damaged one
  return None


def _write_index(path, content, train, heldout) -> None:
  with files.replacing(path) as file:
    np.savez(
        file,
        content=content,
        hash=_hash_plans(train, heldout),
        train_pieces=train.pieces,
        train_offsets=train.offsets,
        heldout_pieces=heldout.pieces,
        heldout_offsets=heldout.offsets,
    )


def _first_sequences(plan: packing.Plan, count: int | None) -> packing.Plan:
  if count is None or count >= plan.num_sequences:
    return plan
  offsets = plan.offsets[: count + 1]
  return dataclasses.replace(
      plan, offsets=offsets, pieces=plan.pieces[: offsets[-1]]
  )


def _hash_plans(*plans: packing.Plan) -> str:
  digest = hashlib.sha256()
  for plan in plans:
    for array in (plan.pieces, plan.offsets):
      digest.update(str(array.shape).encode())
      digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()
