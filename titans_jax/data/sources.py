# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sources of documents: the text that Python carries, and files."""

from __future__ import annotations

import glob
import json
import pathlib
from typing import Iterator

JSON_LINES = (".jsonl", ".json")
ARRAY_RECORD = (".array_record", ".arrayrecord")


def documents(source: str) -> Iterator[bytes]:
  """Yields the documents of a source.

  Args:
    source: "builtin", a file, or a glob of files. A `.jsonl` file holds a
      document per line, under "text"; an `.array_record` file one per record;
      any other file is one document, whatever its bytes.

  Raises:
    ValueError: no such file, an empty one, or a line that is no document.
  """
  if source == "builtin":
    yield from _builtin()
    return
  for path in files(source):
    yield from _read(path)


def files(source: str) -> list[pathlib.Path]:
  paths = sorted(pathlib.Path(p) for p in glob.glob(source, recursive=True))
  if not paths and pathlib.Path(source).exists():
    paths = [pathlib.Path(source)]  # a name with glob characters in it
  paths = [path for path in paths if path.is_file()]
  if not paths:
    raise ValueError(
        f"data.source={source!r} matches no file. Give 'builtin', a file, or a"
        " glob in quotes."
    )
  for path in paths:
    if path.stat().st_size == 0:
      raise ValueError(f"data.source: {path} is empty.")
  return paths


def _read(path: pathlib.Path) -> Iterator[bytes]:
  suffix = path.suffix.lower()
  if suffix in JSON_LINES:
    yield from _read_json_lines(path)
  elif suffix in ARRAY_RECORD:
    yield from _read_array_record(path)
  else:
    yield path.read_bytes()


def _read_json_lines(path: pathlib.Path) -> Iterator[bytes]:
  with path.open("rb") as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        record = json.loads(line.decode("utf-8", errors="replace"))
        text = record["text"]
        if not isinstance(text, str):
          raise TypeError
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, line {number}: expected a JSON object with a string under"
            f" 'text', got {line[:80]!r}."
        ) from error
      yield text.encode("utf-8", errors="replace")


def _read_array_record(path: pathlib.Path) -> Iterator[bytes]:
  from grain import sources  # pylint: disable=g-import-not-at-top

  try:
    with sources.ArrayRecordDataSource(str(path)) as records:
      for index in range(len(records)):
        yield records[index]
  except RuntimeError as error:
    raise ValueError(
        f"{path} is no whole ArrayRecord file: {error}."
    ) from error


def _builtin() -> Iterator[bytes]:
  """The topics of Python's own documentation, each text once.

  Some topics are chapters that repeat others as their sections. Longest first,
  paragraphs that were already seen are left out, and topics of which little
  else remains: no held-out document is a copy of one that is trained on.
  """
  from pydoc_data import topics  # pylint: disable=g-import-not-at-top

  seen: set[str] = set()
  by_length = sorted(topics.topics.items(), key=lambda x: (-len(x[1]), x[0]))
  for _, text in by_length:
    paragraphs = [p for p in text.split("\n\n") if p.strip()]
    fresh = [p for p in paragraphs if " ".join(p.split()) not in seen]
    seen.update(" ".join(p.split()) for p in paragraphs)
    rest = "\n\n".join(fresh)
    if 2 * len(rest) > len(text):
      yield rest.encode("utf-8")
