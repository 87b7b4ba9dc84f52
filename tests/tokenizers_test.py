# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizers give back what they were given."""

import pathlib

from absl.testing import parameterized
import numpy as np
import tokenizers as hf

from titans_jax import tokenizers


def write_tokenizer(folder, special=("<|endoftext|>",)):
  """Trains a small byte-level BPE and returns its file."""
  tokenizer = hf.Tokenizer(hf.models.BPE())
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  trainer = hf.trainers.BpeTrainer(
      vocab_size=300,
      special_tokens=list(special),
      initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
  )
  tokenizer.train_from_iterator(
      ["the memory learns while it reads"] * 9, trainer
  )
  path = pathlib.Path(folder) / "tokenizer.json"
  tokenizer.save(str(path))
  return str(path)


class TokenizersTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path

  def test_bytes_round_trip(self):
    tokenizer = tokenizers.make_tokenizer("byte")
    text = bytes(range(256))
    ids = tokenizer.encode(text)
    self.assertLess(ids.max(), tokenizer.document_token)
    self.assertLess(tokenizer.document_token, tokenizer.vocab_size)
    self.assertEqual(tokenizer.decode(ids), text)
    with_marks = np.append(ids, tokenizer.document_token)
    self.assertEqual(tokenizer.decode(with_marks), text)

  def test_hugging_face_round_trip(self):
    tokenizer = tokenizers.make_tokenizer(write_tokenizer(self.folder))
    text = "the memory reads \u00e9t\u00e9 \u6f22".encode()
    ids = tokenizer.encode(text)
    self.assertLess(len(ids), len(text))
    self.assertNotIn(tokenizer.document_token, ids)
    self.assertEqual(tokenizer.decode(ids), text)

  def test_invalid_utf8_is_no_crash(self):
    tokenizer = tokenizers.make_tokenizer(write_tokenizer(self.folder))
    ids = tokenizer.encode(b"the \xff\xfe memory")
    self.assertEqual(tokenizer.decode(ids), "the \ufffd\ufffd memory".encode())

  def test_bad_names(self):
    with self.assertRaisesRegex(ValueError, "'byte' or a tokenizer.json"):
      tokenizers.make_tokenizer("bytes")

  def test_file_that_is_no_tokenizer(self):
    path = pathlib.Path(self.folder) / "broken.json"
    path.write_text("{")
    with self.assertRaisesRegex(ValueError, "broken.json' is no tokenizer"):
      tokenizers.make_tokenizer(str(path))

  def test_without_document_token(self):
    path = write_tokenizer(self.folder, special=("[UNK]",))
    with self.assertRaisesRegex(ValueError, "none of the tokens"):
      tokenizers.make_tokenizer(path)
