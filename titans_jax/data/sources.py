# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sources of documents: the text that Python carries, and files."""

from __future__ import annotations

import dataclasses
import functools
import glob
import itertools
import json
import pathlib
import re
import sys
from typing import Any, Iterable, Iterator

JSON_LINES = (".jsonl", ".json")
ARRAY_RECORD = (".array_record", ".arrayrecord")
PARQUET = (".parquet",)


def documents(source: str) -> Iterator[bytes]:
  """Yields the documents of a source.

  Args:
    source: "builtin", a file, a glob of files, or
      `hf://datasets/OWNER/NAME[@REVISION][/GLOB]`, files of a data set of the
      Hugging Face hub (without GLOB its Parquet files). A `.jsonl` file holds a
      document per line, under "text"; a `.parquet` file one per row, in the
      column "text"; an `.array_record` file one per record; any other file is
      one document, whatever its bytes.

  Raises:
    ValueError: no such file, an empty one, or a line that is no document.
  """
  if source == "builtin":
    yield from _builtin()
    return
  for path in files(source):
    yield from _read(path)


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of a source that can be read by itself.

  Attributes:
    paths: files that it lies in: one, or several whole ones.
    first: where it begins: a byte of a JSON lines file, a row group of a Parquet
      file.
    end: where the next one begins; None: at the end.
  """

  paths: tuple[pathlib.Path, ...]
  first: int = 0
  end: int | None = None

  def documents(self) -> Iterator[bytes]:
    """Yields its documents."""
    for path in self.paths:
      yield from _read(path, self.first, self.end)


def parts(source: str, size: int) -> list[Part]:
  """Returns a source's parts, in its order, of about `size` bytes each.

  Args:
    source: files, as in `documents`.
    size: large files are cut so, and small ones read together.

  Raises:
    ValueError: no such file, or an empty one.
  """
  found: list[Part] = []
  small: list[pathlib.Path] = []

  def put_small():
    if small:
      found.append(Part(tuple(small)))
      small.clear()

  for path in files(source):
    bounds = _bounds(path, size)
    if len(bounds) > 2:
      put_small()
      for first, end in itertools.pairwise(bounds):
        found.append(Part((path,), first, end))
      continue
    small.append(path)
    if sum(p.stat().st_size for p in small) >= size:
      put_small()
  put_small()
  return found


def _bounds(path: pathlib.Path, size: int) -> list[int]:
  """Returns where the parts of a file begin, and where the last one ends."""
  suffix = path.suffix.lower()
  total = path.stat().st_size
  if suffix in JSON_LINES:
    return [*range(0, total, size), total]
  if suffix in PARQUET:
    groups = _parquet(path).metadata.num_row_groups
    step = max(1, round(groups * size / max(total, 1)))
    return [*range(0, groups, step), groups]
  return [0, total]


def files(source: str) -> list[pathlib.Path]:
  """Returns a source's files, sorted; those of the hub are fetched first."""
  if source.startswith("hf://"):
    found = list(_fetch(source))
  else:
    found = glob.glob(source, recursive=True)
  paths = sorted(pathlib.Path(p) for p in found)
  if not paths and pathlib.Path(source).exists():
    paths = [pathlib.Path(source)]  # a name with glob characters in it
  paths = [path for path in paths if path.is_file()]
  if not paths:
    raise ValueError(
        f"data.source={source!r} matches no file. Give 'builtin', a file, a glob"
        " in quotes, or hf://datasets/OWNER/NAME/GLOB."
    )
  for path in paths:
    if path.stat().st_size == 0:
      raise ValueError(f"data.source: {path} is empty.")
  return paths


def versions(source: str) -> list[list[Any]]:
  """Returns what tells whether a source has changed."""
  if source == "builtin":
    return [["builtin", sys.version]]
  return [version(source, path) for path in files(source)]


def version(source: str, path: pathlib.Path) -> list[Any]:
  """Returns what tells whether one of a source's files has changed.

  A file of the hub is its commit's, on whichever host and whenever it came.
  """
  if source.startswith("hf://"):
    return [source, *path.parts[path.parts.index("snapshots") + 1 :]]
  status = path.stat()
  return [str(path.resolve()), status.st_size, status.st_mtime_ns]


_HUB = re.compile(
    r"hf://datasets/(?P<name>[^/@]+/[^/@]+)"
    r"(@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(/(?P<glob>.*))?"
)


@functools.cache  # A branch may move on while a process reads.
def _fetch(source: str) -> tuple[str, ...]:
  """Fetches files of a data set of the hub, as far as they are not here."""
  match = _HUB.fullmatch(source)
  if match is None:
    raise ValueError(
        f"data.source={source!r} must be"
        " hf://datasets/OWNER/NAME[@REVISION][/GLOB]."
    )
  try:
    import huggingface_hub  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ImportError(
        f"Reading {source} needs the `huggingface_hub` package: pip install"
        " 'titans-jax[hf]'."
    ) from error
  pattern = re.compile(_glob_regex(match["glob"] or "**/*.parquet"))
  where = {"repo_type": "dataset", "revision": match["revision"]}
  try:
    names = huggingface_hub.HfApi().list_repo_files(match["name"], **where)
    names = [name for name in names if pattern.fullmatch(name)]
    if not names:
      return ()
    folder = huggingface_hub.snapshot_download(
        match["name"], allow_patterns=[glob.escape(n) for n in names], **where
    )
  except Exception as error:  # the library's errors have no common class
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(
        f"data.source={source!r} cannot be fetched: {reason}"
    ) from error
  return tuple(f"{folder}/{name}" for name in names)


def _glob_regex(pattern: str) -> str:
  """Returns a recursive glob as a regular expression."""
  parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
  tokens = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
  return "".join(parts.get(token, re.escape(token)) for token in tokens)


def _read(
    path: pathlib.Path, first: int = 0, end: int | None = None
) -> Iterator[bytes]:
  suffix = path.suffix.lower()
  if suffix in JSON_LINES:
    yield from _read_json_lines(path, first, end)
  elif suffix in PARQUET:
    yield from _read_parquet(path, first, end)
  elif suffix in ARRAY_RECORD:
    yield from read_array_record(path)
  else:
    yield path.read_bytes()


def _read_json_lines(
    path: pathlib.Path, first: int, end: int | None
) -> Iterator[bytes]:
  """Reads the lines that begin at one of the bytes from `first` to `end`."""
  where = "line"
  with path.open("rb") as lines:
    if first:
      where = f"behind byte {first:,}, line"
      lines.seek(first - 1)
      lines.readline()  # begins before
    for number in itertools.count(1):
      if end is not None and lines.tell() >= end:
        return
      line = lines.readline()
      if not line:
        return
      if not line.strip():
        continue
      try:
        record = json.loads(line.decode("utf-8", errors="replace"))
        text = record["text"]
        if not isinstance(text, str):
          raise TypeError
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, {where} {number}: expected a JSON object with a string under"
            f" 'text', got {line[:80]!r}."
        ) from error
      yield text.encode("utf-8", errors="replace")


def _parquet(path: pathlib.Path):
  try:
    from pyarrow import parquet  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ImportError(
        f"Reading {path} needs the `pyarrow` package: pip install"
        " 'titans-jax[parquet]'."
    ) from error
  try:
    file = parquet.ParquetFile(path)
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} is no whole Parquet file: {error}.") from error
  if "text" not in file.schema_arrow.names:
    raise ValueError(
        f"{path} has no column 'text', but {file.schema_arrow.names}."
    )
  return file


def _read_parquet(
    path: pathlib.Path, first: int, end: int | None
) -> Iterator[bytes]:
  """Reads the row groups from `first` to `end`."""
  file = _parquet(path)
  last = file.metadata.num_row_groups if end is None else end
  groups: Iterable[int] = range(first, last)
  for batch in file.iter_batches(row_groups=list(groups), columns=["text"]):
    for text in batch.column(0):
      yield (text.as_py() or "").encode("utf-8", errors="replace")


def read_array_record(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of a file.

  Raises:
    ValueError: the file is damaged.
  """
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
