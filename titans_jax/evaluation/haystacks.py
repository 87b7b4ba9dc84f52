# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Background text of any length, with sentences hidden in it."""

from __future__ import annotations

import hashlib
import re
from typing import Iterable, Sequence

import numpy as np

from titans_jax import tokenizers
from titans_jax.data import sources

# What RULER repeats where a haystack is to be without sense.
NOISE = (
    b"The grass is green. The sky is blue. The sun is yellow. Here we go. There"
    b" and back again."
)

# A longer source is cut: the tokens are held in memory.
_MAX_BYTES = 2**26

_SENTENCE_END = re.compile(rb"(?<=[.!?])\s+|\n+")
_LONGEST = 400  # bytes of a sentence; text without full stops is cut at spaces
_LONG = re.compile(rb"\S.{0,%d}(?=\s|$)|\S{%d}" % (_LONGEST, _LONGEST), re.S)


class Haystack:
  """The sentences of a text, as tokens.

  Attributes:
    fingerprint: equal exactly for equal tokens.
  """

  def __init__(self, texts: Iterable[bytes], tokenizer: tokenizers.Tokenizer):
    """Splits and encodes texts.

    Raises:
      ValueError: there is nothing in them.
    """
    pieces, size = [], 0
    for text in texts:
      for sentence in _sentences(text[: _MAX_BYTES - size]):
        # With the space before it, as it would stand in a text.
        pieces.append(tokenizer.encode(b" " + sentence))
      size += len(text)
      if size >= _MAX_BYTES:
        break
    if not pieces:
      raise ValueError("The haystack holds no text.")
    self._tokens = np.concatenate(pieces).astype(np.int32)
    self._starts = np.cumsum([0] + [len(p) for p in pieces[:-1]])
    self.fingerprint = hashlib.sha256(self._tokens.tobytes()).hexdigest()[:16]

  def hide(
      self,
      needles: Sequence[np.ndarray],
      depths: Sequence[float],
      length: int,
      rng: np.random.Generator,
  ) -> np.ndarray:
    """Returns text with needles between its sentences.

    Args:
      needles: tokens of each, in the order in which they are to stand.
      depths: where each stands, as a share of the text, ascending from 0 to 1;
        the nearest place between two sentences is taken.
      length: tokens of the whole, needles and all.
      rng: chooses the sentence that the text begins with.

    Returns:
      int32 [length]; the last sentence may be cut. A haystack that is shorter
      begins anew.

    Raises:
      ValueError: the needles do not fit.
    """
    room = length - sum(len(needle) for needle in needles)
    if room < 0:
      raise ValueError(
          f"{len(needles)} sentences of {length - room} tokens do not fit into"
          f" {length}."
      )
    first = int(rng.choice(self._starts))
    text = self._tokens[first : first + room]
    if len(text) < room:
      repeats = -(-(first + room) // len(self._tokens))
      text = np.tile(self._tokens, repeats)[first : first + room]
    parts: list[np.ndarray] = []
    done: int = 0
    for needle, depth in zip(needles, depths):
      place = max(done, self._boundary(first, room, depth))
      parts += [text[done:place], needle]
      done = place
    return np.concatenate([*parts, text[done:]]).astype(np.int32)

  def _boundary(self, first: int, room: int, depth: float) -> int:
    """Returns the place between sentences nearest to a share of the text."""
    size = len(self._tokens)
    wanted = first + depth * room
    around, within = divmod(wanted, size)
    i = int(np.searchsorted(self._starts, within))
    before = int(self._starts[max(i - 1, 0)])
    after = int(self._starts[i]) if i < len(self._starts) else size
    place = before if within - before < after - within else after
    return int(min(max(around * size + place - first, 0), room))


def read(source: str, tokenizer: tokenizers.Tokenizer) -> Haystack:
  """Returns the haystack of a source, "noise" or as `data.sources.documents`.

  At most the first 64 MiB of text are used.

  Raises:
    ValueError: no such file, or nothing in it.
  """
  if source == "noise":
    return Haystack([NOISE], tokenizer)
  return Haystack(sources.documents(source), tokenizer)


def check(source: str, flag: str) -> None:
  """Raises ValueError, naming the flag, where a source has no files."""
  if source in ("noise", "builtin"):
    return
  try:
    sources.files(source)
  except ValueError as error:
    raise ValueError(f"{flag}={source!r} matches no file.") from error


def _sentences(text: bytes) -> Iterable[bytes]:
  for sentence in _SENTENCE_END.split(text):
    if len(sentence) <= _LONGEST:
      if sentence.strip():
        yield sentence.strip()
      continue
    for piece in _LONG.findall(sentence):
      yield piece.strip()
