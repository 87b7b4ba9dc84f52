# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tokenised corpus on disk, its held-out split and its packing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from typing import Any
import zipfile

from absl import logging
import numpy as np

from titans_jax.data import packing
from titans_jax.data import sources
from titans_jax.data import tokenizers

# Increased when the files below change their form or meaning.
_VERSION = 1

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

  In `directory` it keeps `tokens.npy` with `documents.npz`, which are made
  again when the source's files or the tokenizer have changed, and beside them
  `index-T-UNIT.npz`, the packing, with the hash of both in `corpus.json`.

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
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  origin = _origin(source, tokenizer)
  meta = _tokenized(directory, origin)
  if meta is None:
    meta = _tokenize(source, tokenizer, directory, origin)
  tokens = np.load(directory / "tokens.npy", mmap_mode="r")
  documents = np.load(directory / "documents.npz")
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
        " data.sequence_length or more text."
    )
  plans = [
      packing.plan(starts, lengths, sequence_length, unit)
      for starts, lengths in (train, heldout)
  ]
  plans[1] = _first_sequences(plans[1], max_heldout_sequences)
  index_hash = _hash_arrays(
      *(array for p in plans for array in (p.pieces, p.offsets))
  )
  _write_index(
      directory / f"index-{sequence_length}-{unit}.npz",
      content=meta["content"],
      hash=index_hash,
      train_pieces=plans[0].pieces,
      train_offsets=plans[0].offsets,
      heldout_pieces=plans[1].pieces,
      heldout_offsets=plans[1].offsets,
  )
  targets = [
      tokens[start + 1 : start + length + 1]
      for start, length, _ in plans[1].pieces
  ]
  return Corpus(
      tokens=tokens,
      train=plans[0],
      heldout=plans[1],
      heldout_bytes=sum(len(tokenizer.decode(t)) for t in targets),
      fingerprint=f"{meta['content'][:16]}-{index_hash[:16]}",
      document_token=tokenizer.document_token,
  )


def _origin(source: str, tokenizer: tokenizers.Tokenizer) -> dict:
  """Returns what tells whether the tokens on disk are up to date."""
  files: list[list[Any]]
  if source == "builtin":
    files = [["builtin", sys.version]]
  else:
    files = [
        [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
        for path in sources.files(source)
    ]
  return {
      "version": _VERSION,
      "files": files,
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
  """Writes tokens.npy, documents.npz and, when they are whole, corpus.json."""
  (directory / "corpus.json").unlink(missing_ok=True)
  dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
  mark = np.array([tokenizer.document_token], dtype)
  starts, lengths, digests = [], [], []
  content = hashlib.sha256(tokenizer.fingerprint.encode())
  position = 0
  raw = directory / "tokens.raw"
  with raw.open("wb") as file:
    for text in sources.documents(source):
      if not text:
        continue
      digest = hashlib.sha256(text).digest()
      content.update(digest)
      ids = np.concatenate([mark, tokenizer.encode(text).astype(dtype)])
      file.write(ids.tobytes())
      starts.append(position)
      lengths.append(len(ids))
      digests.append(digest[:8])
      position += len(ids)
    file.write(mark.tobytes())
  if not starts:
    raw.unlink()
    raise ValueError(f"data.source={source!r} holds no text.")
  tokens = np.lib.format.open_memmap(
      directory / "tokens.npy", mode="w+", dtype=dtype, shape=(position + 1,)
  )
  tokens[:] = np.memmap(raw, dtype=dtype, mode="r")
  tokens.flush()
  raw.unlink()
  np.savez(
      directory / "documents.npz",
      starts=np.array(starts, np.int64),
      lengths=np.array(lengths, np.int64),
      digests=np.frombuffer(b"".join(digests), ">u8"),
  )
  meta = {"origin": origin, "content": content.hexdigest()}
  (directory / "corpus.json").write_text(json.dumps(meta, indent=2))
  logging.info("Tokenised %s documents, %s tokens.", len(starts), position)
  return meta


def _split(starts, lengths, digests, fraction):
  """Returns (starts, lengths) to train on, and those held out."""
  if len(starts) < _MIN_DOCUMENTS:
    # The tail's first token is read only: neither split is scored on it.
    tails = np.ceil(lengths * fraction).astype(np.int64) + 1
    heads = np.maximum(lengths - tails, 0)
    return _nonempty(starts, heads), _nonempty(starts + heads, lengths - heads)
  target = fraction * lengths.sum()
  chosen = np.zeros(len(starts), bool)
  held = 0
  # By the hash of the text: the choice survives another order of the files.
  for i in np.argsort(digests, kind="stable"):
    if held + lengths[i] <= target:
      chosen[i] = True
      held += lengths[i]
  if not chosen.any():
    chosen[np.argmin(lengths)] = True
  return (
      (starts[~chosen], lengths[~chosen]),
      (starts[chosen], lengths[chosen]),
  )


def _nonempty(starts, lengths):
  return starts[lengths > 0], lengths[lengths > 0]


def _write_index(path: pathlib.Path, **arrays) -> None:
  """Writes the packing, unless this very one is there."""
  try:
    with np.load(path) as saved:
      if all(saved[name] == arrays[name] for name in ("content", "hash")):
        return
  except (OSError, ValueError, KeyError, zipfile.BadZipFile):
    pass  # none yet, or half a one
  np.savez(path, **arrays)


def _first_sequences(plan: packing.Plan, count: int | None) -> packing.Plan:
  if count is None or count >= plan.num_sequences:
    return plan
  offsets = plan.offsets[: count + 1]
  return dataclasses.replace(
      plan, offsets=offsets, pieces=plan.pieces[: offsets[-1]]
  )


def _hash_arrays(*arrays: np.ndarray) -> str:
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(str(array.shape).encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()
