# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: bytes, and any Hugging Face `tokenizer.json`."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Iterable, Iterator, Protocol

import numpy as np


class Tokenizer(Protocol):
  """What the pipeline asks of a tokenizer.

  Attributes:
    vocab_size: ids are below it.
    document_token: the id that begins a document and that is predicted at its
      end.
    fingerprint: equal exactly for tokenizers that encode alike.
  """

  vocab_size: int
  document_token: int
  fingerprint: str

  def encode(self, text: bytes) -> np.ndarray:
    """Returns the ids of a text, without the document token."""

  def decode(self, ids) -> bytes:
    """Returns the text of ids; the document token stands for nothing."""


def id_dtype(tokenizer: Tokenizer) -> np.dtype:
  """Returns the dtype that ids are kept in on disk."""
  return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def encode_all(
    texts: Iterable[bytes], tokenizer: Tokenizer
) -> Iterator[tuple[bytes, int, np.ndarray]]:
  """Yields (SHA-256, bytes of text, ids as on disk) of the texts with any."""
  dtype = id_dtype(tokenizer)
  for text in texts:
    if text:
      digest = hashlib.sha256(text).digest()
      yield digest, len(text), tokenizer.encode(text).astype(dtype)


class ByteTokenizer:
  """A token per byte; works on any file, whatever its encoding."""

  vocab_size = 257
  document_token = 256
  fingerprint = "bytes"

  def encode(self, text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8).astype(np.int32)

  def decode(self, ids) -> bytes:
    ids = np.asarray(ids, np.int64).reshape(-1)
    return ids[(ids >= 0) & (ids < 256)].astype(np.uint8).tobytes()


class HuggingFaceTokenizer:
  """A `tokenizer.json` read by the `tokenizers` library (extra `hf`).

  Attributes:
    vocab_size: with added tokens.
    document_token: the first of `DOCUMENT_TOKENS` that the vocabulary holds.
  """

  DOCUMENT_TOKENS = (
      "<|endoftext|>",
      "<|end_of_text|>",
      "</s>",
      "<eos>",
      "[SEP]",
      "<s>",
  )

  def __init__(self, path: str):
    try:
      import tokenizers  # pylint: disable=g-import-not-at-top
    except ImportError as error:
      raise ImportError(
          f"Reading {path} needs the `tokenizers` package: pip install"
          " 'titans-jax[hf]'."
      ) from error
    content = pathlib.Path(path).read_bytes()
    self.fingerprint = hashlib.sha256(content).hexdigest()
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises no narrower one
      raise ValueError(
          f"data.tokenizer={str(path)!r} is no tokenizer.json: {error}."
      ) from error
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    # Ids may have gaps.
    ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
    self.vocab_size = max(ids, default=0) + 1
    found = [
        token_id
        for token in self.DOCUMENT_TOKENS
        if (token_id := self._tokenizer.token_to_id(token)) is not None
    ]
    if not found:
      raise ValueError(
          f"{path} holds none of the tokens {self.DOCUMENT_TOKENS} to mark"
          " where a document begins and ends. Add one to its added_tokens."
      )
    self.document_token = found[0]

  def encode(self, text: bytes) -> np.ndarray:
    # Bytes that are not UTF-8 become replacement characters, never a crash.
    encoding = self._tokenizer.encode(
        text.decode("utf-8", errors="replace"), add_special_tokens=False
    )
    return np.asarray(encoding.ids, np.int32)

  def decode(self, ids) -> bytes:
    ids = np.asarray(ids, np.int64).reshape(-1)
    ids = ids[(ids >= 0) & (ids != self.document_token)]
    text = self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    return text.encode("utf-8")


def make_tokenizer(name: str) -> Tokenizer:
  """Returns the tokenizer "byte", or that of a path to a tokenizer.json.

  Raises:
    ValueError: neither "byte" nor a file; or a file without document token.
    ImportError: a file, and the extra `hf` is not installed.
  """
  if name == "byte":
    return ByteTokenizer()
  if not pathlib.Path(name).is_file():
    raise ValueError(
        f"data.tokenizer must be 'byte' or a tokenizer.json file, got {name!r},"
        " which is no file."
    )
  return HuggingFaceTokenizer(name)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
  """Raises ValueError for a tokenizer with ids that a model does not have."""
  if tokenizer.vocab_size > vocab_size:
    raise ValueError(
        f"The tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model's"
        f" vocab_size is {vocab_size}: it was trained with another one."
    )
