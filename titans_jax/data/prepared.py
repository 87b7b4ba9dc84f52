# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Text that was tokenised once: ArrayRecord shards and an index, in a folder.

A record is a document: the SHA-256 of its text, the number of its bytes (uint32,
little-endian), and its tokens, of the index's dtype, without a document token.
`index.json` is written last: a folder that has it is whole.
"""

from __future__ import annotations

from concurrent import futures
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import threading
from typing import Any, Callable, Iterator
import uuid

import numpy as np

from titans_jax import files
from titans_jax import tokenizers
from titans_jax.data import sources

_VERSION = 1
_INDEX = "index.json"
_SETTINGS = "settings.json"
_DIGEST = 32
_HEADER = _DIGEST + 4


@dataclasses.dataclass(frozen=True)
class Shard:
  """What one shard holds.

  Attributes:
    file: its name in the folder.
    documents: records.
    tokens: of all documents.
    bytes: of their text.
  """

  file: str
  documents: int
  tokens: int
  bytes: int


def write(
    source: str,
    tokenizer_name: str,
    directory: str | os.PathLike[str],
    *,
    num_workers: int,
    shard_bytes: int = 2**26,
    on_shard: Callable[[int, int, Shard], None] = lambda *_: None,
) -> list[Shard]:
  """Tokenises a source into shards, in parallel, or goes on doing so.

  The shards depend on the files and the settings alone: a call that was killed
  and made again leaves what an uninterrupted one leaves.

  Args:
    source: as in `sources.documents`.
    tokenizer_name: as in `make_tokenizer`.
    directory: where the shards go; must hold nothing, or these.
    num_workers: processes.
    shard_bytes: of the input, that become one shard, about.
    on_shard: called with the number of shards that are done, that of all, and
      the shard.

  Raises:
    ValueError: a source that cannot be read; a folder of other settings.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  tokenizer = tokenizers.make_tokenizer(tokenizer_name)
  parts = sources.parts(source, shard_bytes)
  settings = {
      "format_version": _VERSION,
      "tokenizer": tokenizer.fingerprint,
      "parts": [str(part) for part in parts],
      "sizes": {str(p): p.stat().st_size for p in sources.files(source)},
  }
  _check_settings(directory / _SETTINGS, settings)
  _tidy_up(directory)
  done: dict[int, Shard] = {}
  waiting = []
  for number in range(len(parts)):
    shard = _finished(directory, number)
    if shard is None:
      waiting.append(number)
    else:
      done[number] = shard
  # Fresh processes: forked ones would inherit the threads' locks.
  with futures.ProcessPoolExecutor(
      num_workers,
      mp_context=multiprocessing.get_context("spawn"),
      initializer=_start_worker,
      initargs=(tokenizer_name,),
  ) as pool:
    running = {
        pool.submit(_write_shard, parts[n], str(directory), n): n
        for n in waiting
    }
    for future in futures.as_completed(running):
      number = running[future]
      try:
        done[number] = future.result()
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
      on_shard(len(done), len(parts), done[number])
  _tidy_up(directory)  # workers of that call may have outlived it a moment
  shards = [done[n] for n in range(len(parts))]
  index = {
      "format_version": _VERSION,
      "tokenizer": tokenizer.fingerprint,
      "vocab_size": tokenizer.vocab_size,
      "dtype": tokenizers.id_dtype(tokenizer).name,
      "documents": sum(s.documents for s in shards),
      "tokens": sum(s.tokens for s in shards),
      "bytes": sum(s.bytes for s in shards),
      "shards": [dataclasses.asdict(s) for s in shards],
  }
  files.replace(directory / _INDEX, json.dumps(index, indent=2))
  return shards


def is_prepared(source: str) -> bool:
  """Returns whether a source is a folder that `write` has finished."""
  return (pathlib.Path(source) / _INDEX).is_file()


def shard_files(source: str) -> list[pathlib.Path]:
  """Returns the shards of a prepared folder.

  Raises:
    ValueError: one of them is missing.
  """
  directory = pathlib.Path(source)
  paths = [directory / s["file"] for s in _read_index(directory)["shards"]]
  for path in paths:
    if not path.is_file():
      raise ValueError(
          f"data.source={source!r}: the shard {path.name} of its index is"
          " missing. Copy it again, or make it: delete index.json and call"
          " experiments.prepare_data with the same arguments."
      )
  return paths


def documents(
    source: str, tokenizer: tokenizers.Tokenizer
) -> Iterator[tuple[bytes, int, np.ndarray]]:
  """Yields (SHA-256 of the text, its bytes, token ids) of every document.

  Raises:
    ValueError: a shard that is missing or damaged; another tokenizer.
  """
  index = _read_index(pathlib.Path(source))
  if index["tokenizer"] != tokenizer.fingerprint:
    raise ValueError(
        f"data.source={source!r} was made with another tokenizer (fingerprint"
        f" {index['tokenizer'][:16]}) than data.tokenizer"
        f" ({tokenizer.fingerprint[:16]})."
    )
  dtype = np.dtype(index["dtype"]).newbyteorder("<")
  for path in shard_files(source):
    for record in sources.read_array_record(path):
      size = int.from_bytes(record[_DIGEST:_HEADER], "little")
      yield record[:_DIGEST], size, np.frombuffer(record[_HEADER:], dtype)


def _read_index(directory: pathlib.Path) -> dict[str, Any]:
  index = json.loads((directory / _INDEX).read_text())
  if index.get("format_version") != _VERSION:
    raise ValueError(
        f"{directory / _INDEX} has format version"
        f" {index.get('format_version')}, but this program reads {_VERSION}."
    )
  return index


def _check_settings(path: pathlib.Path, settings: dict[str, Any]) -> None:
  """Writes what a folder is made of, or compares it."""
  if path.exists():
    if json.loads(path.read_text()) != settings:
      raise ValueError(
          f"{path.parent} was begun with other files, another tokenizer or"
          " other shards. Choose another folder, or the same arguments."
      )
  elif any(path.parent.iterdir()):
    raise ValueError(f"{path.parent} holds other files. Choose another folder.")
  else:
    files.replace(path, json.dumps(settings))


def _tidy_up(directory: pathlib.Path) -> None:
  """Removes what a call that was killed had begun to write."""
  for part in directory.glob("*.part"):
    part.unlink(missing_ok=True)


def _name(number: int) -> str:
  return f"shard-{number:05d}.array_record"


def _finished(directory: pathlib.Path, number: int) -> Shard | None:
  """Returns a shard that an earlier call has written."""
  path = directory / f"{_name(number)}.json"
  if not path.exists() or not (directory / _name(number)).exists():
    return None
  return Shard(**json.loads(path.read_text()))


_tokenizer: tokenizers.Tokenizer


def _start_worker(tokenizer_name: str) -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None

  def end_with_parent(timeout=None):
    if multiprocessing.connection.wait([parent.sentinel], timeout):
      os._exit(1)

  # A parent that was killed while this worker started has left it work in the
  # queue, of which it must not begin any.
  end_with_parent(timeout=0)
  threading.Thread(target=end_with_parent, daemon=True).start()
  global _tokenizer  # of this worker process
  _tokenizer = tokenizers.make_tokenizer(tokenizer_name)


def _write_shard(part: sources.Part, directory: str, number: int) -> Shard:
  """Writes one shard: whole, and then its description, or not at all."""
  from array_record.python import array_record_module  # pylint: disable=g-import-not-at-top

  path = pathlib.Path(directory) / _name(number)
  # A name of its own: a worker of a call that was killed may still be writing.
  unfinished = path.with_suffix(f".{uuid.uuid4().hex[:12]}.part")
  writer = array_record_module.ArrayRecordWriter(
      str(unfinished), "group_size:1"
  )
  count = tokens = size = 0
  texts = part.documents()
  try:
    for digest, length, ids in tokenizers.encode_all(texts, _tokenizer):
      writer.write(digest + length.to_bytes(4, "little") + ids.tobytes())
      count += 1
      tokens += len(ids)
      size += length
    writer.close()
    unfinished.replace(path)
  finally:
    unfinished.unlink(missing_ok=True)
  shard = Shard(path.name, count, tokens, size)
  files.replace(
      path.with_name(f"{path.name}.json"), json.dumps(dataclasses.asdict(shard))
  )
  return shard
