# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Reads a text of any length through a checkpoint, at fixed memory.

    python -m experiments.stream --checkpoint=runs/quickstart --input=book.txt \
        --save_state=book.state
    python -m experiments.generate --checkpoint=runs/quickstart \
        --load_state=book.state --prompt='And then '

The memory learns while it reads. --input is a file, '-' (standard input), or a
.npy file of token ids. --save_state writes the state behind what was read, also
where a signal, or an error of the input, ends the reading; --load_state goes on
from one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import pathlib
import signal
import sys
import time
from typing import Any, BinaryIO, Iterator

from absl import app
from absl import flags
import jax
import numpy as np

from titans_jax import data
from titans_jax import inference
from titans_jax.inference import generation
from titans_jax.models import states
from titans_jax.training import checkpoints

from . import _checkpoint
from . import _flags

_CHECKPOINT, _STEP = _checkpoint.define_flags()
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "A file, '-' for standard input, or a .npy file of token ids.",
    required=True,
)
_SAVE_STATE = flags.DEFINE_string(
    "save_state", None, "File that gets the state behind what was read."
)
_LOAD_STATE = flags.DEFINE_string("load_state", None, "State to go on from.")
_UPDATE_MEMORY = flags.DEFINE_bool(
    "update_memory", True, "False reads without learning."
)
_METRICS = flags.DEFINE_string(
    "metrics", None, "File that gets a line of JSON for every report."
)
_REPORT_EVERY = flags.DEFINE_integer(
    "report_every", 100_000, "Tokens between two reports.", lower_bound=1
)
_TOKENS_PER_CALL = flags.DEFINE_integer(
    "tokens_per_call", 2048, "Tokens that are read at once.", lower_bound=1
)

_BLOCK = 2**18  # bytes


class _Stopped(Exception):
  """A signal came while input was waited for."""


def main(argv) -> None:
  _flags.start(argv)
  with (
      _flags.clean_errors(checkpoints.CheckpointError, FloatingPointError),
      _open(_INPUT.value) as source,
  ):
    trained = _checkpoint.load(_CHECKPOINT.value, _STEP.value)
    model, variables, tokenizer = trained[:3]
    reader = _Reader(model, variables)
    with _stopping() as stop, reader.saving():
      for piece in _tokens(source, tokenizer, stop):
        reader.read(piece)
    reader.report()
    source.check()
  print(reader.summary())
  if stop.is_set():
    print("Stopped by a signal.")


class _Reader:
  """A model, the state behind what it has read, and the sums since a report."""

  def __init__(self, model, variables):
    self._model, self._variables = model, variables
    if _LOAD_STATE.value is None:
      self._state = generation.init_state(model, variables, 1)
    else:
      self._state = _checkpoint.load_state(_LOAD_STATE.value, model, variables)
    self._waiting = np.zeros(0, np.int32)
    self.tokens = 0
    self._nats = self._scored = 0.0
    self._all = np.zeros(2)  # nats and scored tokens
    self._norms: dict[str, float] = {}
    self._start = self._mark = time.perf_counter()
    self._marked = 0

  def read(self, piece: np.ndarray) -> None:
    """Reads a piece of tokens, but what does not fill a call."""
    self._model.check_tokens(piece)
    waiting = np.concatenate([self._waiting, piece.astype(np.int32)])
    size = _TOKENS_PER_CALL.value
    while len(waiting) > size:  # the last one's target has to be there
      self._call(waiting[:size], waiting[1 : size + 1])
      waiting = waiting[size:]
    self._waiting = waiting

  @contextlib.contextmanager
  def saving(self) -> Iterator[None]:
    """Reads the rest and saves the state, also where reading ends by an error
    of the input."""
    try:
      yield
    except FloatingPointError:
      raise  # The state is worth nothing.
    except Exception:
      self._finish()
      raise
    self._finish()
    if not self.tokens:
      raise ValueError(f"--input={_INPUT.value} holds nothing to read.")

  def _finish(self) -> None:
    rest, self._waiting = self._waiting, self._waiting[:0]
    if len(rest):
      self._call(rest, np.append(rest[1:], -1))
    if _SAVE_STATE.value is not None and self.tokens:
      inference.save_state(
          _SAVE_STATE.value, self._state, self._model, self._variables
      )

  def _call(self, tokens: np.ndarray, targets: np.ndarray) -> None:
    self._model.check_room(self._state, len(tokens))
    size = _TOKENS_PER_CALL.value
    padding = (0, size - len(tokens))
    sums, self._state = _read(
        self._model,
        self._variables,
        self._state,
        np.pad(tokens, padding)[None],
        np.pad(targets, padding, constant_values=-1)[None],
        (np.arange(size) < len(tokens))[None],
        _UPDATE_MEMORY.value,
    )
    sums = jax.device_get(sums)
    self.tokens += len(tokens)
    if not math.isfinite(sums["nats"]):
      raise FloatingPointError(
          f"The loss is {sums['nats']} within the {size} tokens before token"
          f" {self.tokens:,}: this checkpoint cannot read on."
      )
    self._nats += float(sums["nats"])
    self._scored += float(sums["num_tokens"])
    self._norms = {k: float(v) for k, v in sums["norms"].items()}
    if self.tokens - self._marked >= _REPORT_EVERY.value:
      self.report()

  def report(self) -> None:
    """Says how the tokens since the last report were read."""
    if self.tokens == self._marked:
      return
    now = time.perf_counter()
    row = {
        "tokens": self.tokens,
        "tokens_per_second": (self.tokens - self._marked) / (now - self._mark),
        "loss": self._nats / max(self._scored, 1),
        **self._norms,
        "resident_bytes": _resident_bytes(),
    }
    print(
        f"{self.tokens:,} tokens, {row['tokens_per_second']:,.0f} tokens/s, loss"
        f" {row['loss']:.4f}"
        + "".join(f", {k} {v:.3g}" for k, v in self._norms.items())
        + f", {row['resident_bytes'] / 2**20:,.0f} MiB",
        flush=True,
    )
    if _METRICS.value is not None:
      with open(_METRICS.value, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    self._all += self._nats, self._scored
    self._nats = self._scored = 0.0
    self._mark, self._marked = now, self.tokens

  def summary(self) -> str:
    seconds = time.perf_counter() - self._start
    nats, scored = self._all
    size = states.size_in_bytes(self._state)
    line = (
        f"Read {self.tokens:,} tokens in {seconds:,.1f} s, loss"
        f" {nats / max(scored, 1):.4f} nats a token; the state takes"
        f" {size / 2**20:,.1f} MiB."
    )
    if _SAVE_STATE.value is not None:
      line += f" It is in {_SAVE_STATE.value}."
    return line


@functools.partial(jax.jit, static_argnums=(0, 6), donate_argnums=2)
def _read(model, variables, state, tokens, targets, mask, update_memory):
  _, metrics, state = model.apply(
      variables,
      tokens,
      targets,
      state,
      mask=mask,
      update_memory=update_memory,
      method="loss",
  )
  count, gauges = metrics["num_tokens"], metrics["memory"]
  sums = {
      "nats": metrics["cross_entropy"] * count,
      "num_tokens": count,
      "norms": {},
  }
  if gauges is not None:
    sums["norms"] = {
        "weight_norm": gauges.weight_norm.max(),
        "momentum_norm": gauges.momentum_norm.max(),
    }
  return sums, state


class _Source:
  """An open input, which must stay as it is while it is read."""

  def __init__(self, name: str, file: BinaryIO):
    self.name, self.file = name, file
    self.is_tokens = name.endswith(".npy")
    self._before = self._version()

  def check(self) -> None:
    """Raises ValueError if the file was changed since it was opened."""
    if self._version() != self._before:
      kept = ""
      if _SAVE_STATE.value is not None:
        kept = f" The state behind what was read is in {_SAVE_STATE.value}."
      raise ValueError(f"--input={self.name} changed while it was read.{kept}")

  def _version(self):
    if self.name == "-":
      return None
    status = os.stat(self.name)
    return status.st_size, status.st_mtime_ns, status.st_ino


@contextlib.contextmanager
def _open(name: str) -> Iterator[_Source]:
  if name == "-":
    if sys.stdin is None:
      raise ValueError("--input=- and standard input is closed.")
    yield _Source(name, sys.stdin.buffer)
    return
  if not pathlib.Path(name).is_file():
    raise ValueError(f"--input={name} is no file.")
  with open(name, "rb") as file:
    yield _Source(name, file)


class _Stop:
  """Set by SIGTERM and SIGINT."""

  def __init__(self):
    self._set = False
    self.waiting = False

  def is_set(self) -> bool:
    return self._set

  def __call__(self, *_: Any) -> None:
    self._set = True
    if self.waiting:  # A read would be taken up again.
      raise _Stopped


@contextlib.contextmanager
def _stopping() -> Iterator[_Stop]:
  stop = _Stop()
  kinds = (signal.SIGTERM, signal.SIGINT)
  before = [signal.signal(kind, stop) for kind in kinds]
  try:
    yield stop
  finally:
    for kind, handler in zip(kinds, before):
      signal.signal(kind, handler)


def _tokens(source, tokenizer, stop: _Stop) -> Iterator[np.ndarray]:
  """Yields an input's tokens in pieces, until it ends or a signal comes."""
  if source.is_tokens:
    yield from _saved_tokens(source.name, stop)
    return
  if _LOAD_STATE.value is None:
    yield np.array([tokenizer.document_token])
  rest = b""
  for block in _blocks(source.file, stop):
    text = rest + block
    end = len(text)
    if not isinstance(tokenizer, data.ByteTokenizer):
      # A tokenizer's pieces reach over no space but the one before a word.
      end = max(text.rfind(b" "), text.rfind(b"\n"))
      if end <= 0:
        end = len(text) if len(text) >= _BLOCK else 0
    rest = text[end:]
    if end:
      yield tokenizer.encode(text[:end])
  if rest:
    yield tokenizer.encode(rest)


def _blocks(file, stop: _Stop) -> Iterator[bytes]:
  while not stop.is_set():
    try:
      stop.waiting = True
      block = file.read1(_BLOCK)
    except _Stopped:
      return
    finally:
      stop.waiting = False
    if not block:
      return
    yield block


def _saved_tokens(name: str, stop: _Stop) -> Iterator[np.ndarray]:
  try:
    tokens = np.load(name, mmap_mode="r")
  except (ValueError, EOFError) as error:
    raise ValueError(f"--input={name} is no .npy file: {error}.") from error
  if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
    raise ValueError(
        f"--input={name} must hold integers [N], got {tokens.dtype}"
        f" {tokens.shape}."
    )
  length = len(tokens)
  del tokens
  for first in range(0, length, _BLOCK):
    if stop.is_set():
      return
    # Mapped anew: the pages of what was read would stay resident.
    yield np.array(np.load(name, mmap_mode="r")[first : first + _BLOCK])


def _resident_bytes() -> int:
  """Returns the bytes of main memory that this process holds now."""
  try:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
  except OSError:  # no such system
    import resource  # pylint: disable=g-import-not-at-top

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run() -> None:
  app.run(main)


if __name__ == "__main__":
  run()
