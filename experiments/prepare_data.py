# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Tokenises text once, into sharded ArrayRecord files with an index.

    python -m experiments.prepare_data --source='fineweb/*.parquet' \
        --tokenizer=tokenizer.json --output=data/fineweb_edu

Text, JSON lines and Parquet files, in parallel. The same command goes on where
an earlier one was stopped, and leaves the same files. Train on the result with
--config.data.source=data/fineweb_edu and the same --config.data.tokenizer.
"""

from __future__ import annotations

import os
import sys
import time

from absl import app
from absl import flags

from titans_jax.data import prepared

from . import _flags

_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "A file, a glob of files in quotes, or"
    " hf://datasets/OWNER/NAME[@REVISION][/GLOB].",
    required=True,
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "byte", "'byte', or the path of a tokenizer.json."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder that gets the shards.", required=True
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", os.cpu_count() or 1, "Processes.", lower_bound=1
)
_SHARD_MIB = flags.DEFINE_integer(
    "shard_mib", 64, "MiB of the input that become one shard.", lower_bound=1
)

_SECONDS_BETWEEN_LINES = 10.0


def main(argv) -> None:
  _flags.start(argv)
  progress = _Progress()
  with _flags.clean_errors():
    shards = prepared.write(
        _SOURCE.value,
        _TOKENIZER.value,
        _flags.local_folder("output", _OUTPUT.value),
        num_workers=_NUM_WORKERS.value,
        shard_bytes=_SHARD_MIB.value * 2**20,
        on_shard=progress.update,
    )
  progress.close()
  documents = sum(s.documents for s in shards)
  tokens = sum(s.tokens for s in shards)
  size = sum(s.bytes for s in shards)
  print(
      f"{documents:,} documents, {tokens:,} tokens, {size:,} bytes of text in"
      f" {len(shards):,} shards{progress.rate()}.\nTrain on them with"
      f" --config.data.source={_OUTPUT.value}"
      f" --config.data.tokenizer={_TOKENIZER.value}"
  )


class _Progress:
  """A bar on a terminal, a line now and then elsewhere."""

  def __init__(self):
    self._start = self._said = time.perf_counter()
    self._bar = None
    self._bytes = self._tokens = 0

  def update(self, done: int, total: int, shard: prepared.Shard) -> None:
    self._bytes += shard.bytes
    self._tokens += shard.tokens
    now = time.perf_counter()
    if sys.stderr.isatty():
      if self._bar is None:
        import tqdm  # pylint: disable=g-import-not-at-top

        self._bar = tqdm.tqdm(total=total, initial=done - 1, unit="shard")
      self._bar.update(done - self._bar.n)
      self._bar.set_postfix_str(f"{self._tokens:,} tokens")
    elif now - self._said > _SECONDS_BETWEEN_LINES:
      self._said = now
      print(
          f"{done}/{total} shards{self.rate()}, {self._tokens:,} tokens",
          flush=True,
      )

  def rate(self) -> str:
    seconds = time.perf_counter() - self._start
    if not self._bytes:
      return ""
    return f", {self._bytes / seconds / 1e6:.1f} MB/s of text"

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def run() -> None:
  app.run(main)


if __name__ == "__main__":
  run()
