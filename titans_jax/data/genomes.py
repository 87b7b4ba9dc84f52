# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Labelled DNA, in GenomicBenchmarks' form and in those that people have.

A set of sequences is

- a folder with a folder for every class, which holds text files of one sequence
  each (GenomicBenchmarks' form), or FASTA files of many;
- or a CSV file with the columns `sequence` and `label`.
"""

from __future__ import annotations

import csv
import hashlib
import os
import pathlib
import re
from typing import Iterator, NamedTuple

import numpy as np

# Tokens of the bases; PAD stands where a row has none.
BASES = "ACGTN"
PAD = len(BASES)
VOCAB_SIZE = PAD + 1

_UNKNOWN = 255
_FASTA = (".fa", ".fasta", ".fna")


def _table() -> np.ndarray:
  table = np.full(256, _UNKNOWN, np.uint8)
  for token, base in enumerate(BASES):
    table[[ord(base), ord(base.lower())]] = token
  for code in "RYSWKMBDHV":  # IUPAC's codes for one of several bases
    table[[ord(code), ord(code.lower())]] = BASES.index("N")
  return table


_TOKENS = _table()
_COMPLEMENTS = np.array([BASES.index(b) for b in "TGCAN"] + [PAD], np.int32)


class Sequences(NamedTuple):
  """Sequences with labels.

  Attributes:
    tokens: an array of tokens, uint8 [length], for every sequence.
    labels: number of its class, int32 [N].
    classes: their names, sorted.
    fingerprint: equal exactly for equal sequences and labels.
  """

  tokens: list[np.ndarray]
  labels: np.ndarray
  classes: tuple[str, ...]
  fingerprint: str


def encode(sequence: str, where: str) -> np.ndarray:
  """Returns a sequence's tokens, uint8 [length]; other IUPAC codes become N.

  Raises:
    ValueError: it is empty, or holds what is no base.
  """
  data = sequence.strip().encode("latin-1", errors="replace")
  tokens = _TOKENS[np.frombuffer(data, np.uint8)]
  if not len(tokens):
    raise ValueError(f"{where}: the sequence is empty.")
  wrong = np.flatnonzero(tokens == _UNKNOWN)
  if len(wrong):
    raise ValueError(
        f"{where}: {sequence.strip()[wrong[0]]!r} at base {wrong[0] + 1} is none"
        f" of {BASES} (or another IUPAC code)."
    )
  return tokens


def reverse_complement(tokens: np.ndarray) -> np.ndarray:
  """Returns the tokens of the other strand, read in its direction."""
  return _COMPLEMENTS[tokens[::-1]].astype(tokens.dtype)


def read(path: str | os.PathLike[str], flag: str = "--data") -> Sequences:
  """Reads a set of sequences.

  Args:
    path: a folder of classes, or a CSV file.
    flag: the flag that names it, for messages.

  Raises:
    ValueError: no such file, less than two classes, one without a sequence, or
      a sequence that is none.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    found = {
        folder.name: list(_read_folder(folder, flag))
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
  elif path.is_file():
    found = _read_csv(path, flag)
  else:
    raise ValueError(f"{flag}: there is no {path}.")
  if len(found) < 2:
    raise ValueError(
        f"{flag}={path} has {len(found)} classes, a folder or label each: at"
        " least two are needed."
    )
  classes = tuple(sorted(found))
  tokens = [sequence for name in classes for sequence in found[name]]
  labels = np.repeat(
      np.arange(len(classes), dtype=np.int32),
      [len(found[name]) for name in classes],
  )
  digest = hashlib.sha256(repr(classes).encode() + labels.tobytes())
  for sequence in tokens:
    digest.update(b"\n" + sequence.tobytes())
  return Sequences(tokens, labels, classes, digest.hexdigest()[:16])


def _read_folder(folder: pathlib.Path, flag: str) -> Iterator[np.ndarray]:
  paths = [
      p
      for p in sorted(folder.iterdir())
      if p.is_file() and not p.name.startswith(".")
  ]
  if not paths:
    raise ValueError(f"{flag}: the class folder {folder} holds no file.")
  for path in paths:
    text = path.read_text(encoding="latin-1")
    if path.suffix.lower() not in _FASTA:
      yield encode("".join(text.split()), f"{flag}: {path}")
      continue
    _, *records = re.split(r"^>", text, flags=re.MULTILINE)
    if not records:
      raise ValueError(
          f"{flag}: {path} holds no record, a line with '>' first."
      )
    for record in records:
      name, _, lines = record.partition("\n")
      yield encode("".join(lines.split()), f"{flag}: {path}, {name.strip()}")


def _read_csv(path: pathlib.Path, flag: str) -> dict[str, list[np.ndarray]]:
  found: dict[str, list[np.ndarray]] = {}
  with path.open(newline="", encoding="utf-8-sig") as file:
    reader = csv.DictReader(file)
    names = reader.fieldnames or []
    if "sequence" not in names or "label" not in names:
      raise ValueError(
          f"{flag}={path} has the columns {names}: 'sequence' and 'label' are"
          " needed."
      )
    for row in reader:
      where = f"{flag}: {path}, line {reader.line_num}"
      if not row["label"] or row["sequence"] is None:
        raise ValueError(f"{where}: a sequence and a label are needed.")
      found.setdefault(row["label"], []).append(encode(row["sequence"], where))
  return found
