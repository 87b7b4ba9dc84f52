# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A corpus on disk, its split, and the batches made of it."""

import itertools
import json
import pathlib

from absl.testing import parameterized
import numpy as np

from titans_jax import data


class CorpusTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.source = self.folder / "text.jsonl"
    self.write(seed=0)

  def write(self, seed, count=40):
    rng = np.random.default_rng(seed)
    texts = [
        "".join(rng.choice(list("abc "), rng.integers(5, 60)))
        for _ in range(count)
    ]
    self.source.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return texts

  def prepare(self, cache="cache", **kwargs):
    kwargs = {"sequence_length": 32, "unit": 8} | kwargs
    return data.prepare(
        str(self.source), data.ByteTokenizer(), self.folder / cache, **kwargs
    )

  def text_of(self, corpus, plan):
    tokenizer = data.ByteTokenizer()
    return [
        tokenizer.decode(corpus.tokens[start : start + length])
        for start, length, _ in plan.pieces
    ]

  def test_split_by_document(self):
    texts = self.write(seed=0)
    corpus = self.prepare()
    share = corpus.heldout.num_tokens / (
        corpus.train.num_tokens + corpus.heldout.num_tokens
    )
    self.assertBetween(share, 0.02, 0.1)
    pieces = b"".join(self.text_of(corpus, corpus.heldout))
    held = [t for t in texts if t.encode() in pieces]
    self.assertNotEmpty(held)
    trained = b"".join(self.text_of(corpus, corpus.train))
    self.assertFalse(any(t.encode() in trained for t in held if len(t) > 12))
    self.assertEqual(
        corpus.heldout_bytes,
        sum(map(len, self.text_of(corpus, corpus.heldout))),
    )

  @parameterized.parameters(*range(5))
  def test_copies_of_a_document_stand_on_one_side(self, seed):
    texts = self.write(seed, count=15)
    lines = [json.dumps({"text": t}) for t in texts]
    self.source.write_text("\n".join(lines + lines))
    corpus = self.prepare(heldout_fraction=0.3)

    def documents(plan):
      whole = b"".join(self.text_of(corpus, plan))
      return {t for t in texts if len(t) > 20 and t.encode() in whole}

    self.assertNotEmpty(documents(corpus.heldout))
    self.assertEmpty(documents(corpus.heldout) & documents(corpus.train))

  def test_a_reader_keeps_what_it_opened(self):
    corpus = self.prepare()
    before = np.array(corpus.tokens)
    self.write(seed=1, count=11)
    self.prepare()
    np.testing.assert_array_equal(corpus.tokens, before)

  def test_damaged_index_is_made_again(self):
    first = self.prepare()
    (index,) = (self.folder / "cache").glob("index-*.npz")
    index.write_bytes(index.read_bytes()[:100])
    again = self.prepare()
    self.assertEqual(again.fingerprint, first.fingerprint)
    np.testing.assert_array_equal(again.train.pieces, first.train.pieces)

  def test_split_of_one_document_is_its_tail(self):
    self.source = self.folder / "one.txt"
    self.source.write_text("x" * 899 + "y" * 100)
    corpus = self.prepare()
    for start, length, _ in corpus.train.pieces:  # targets included
      self.assertNotIn(ord("y"), corpus.tokens[start : start + length + 1])
    self.assertEqual(corpus.heldout_bytes, 100)

  def test_is_opened_again_unless_the_source_changed(self):
    first = self.prepare()
    made = (self.folder / "cache" / "tokens.bin").stat().st_mtime_ns
    again = self.prepare()
    self.assertEqual(again.fingerprint, first.fingerprint)
    self.assertEqual(
        (self.folder / "cache" / "tokens.bin").stat().st_mtime_ns, made
    )
    self.write(seed=1)
    self.assertNotEqual(self.prepare().fingerprint, first.fingerprint)

  def test_fingerprint_tells_packing_apart(self):
    names = {
        self.prepare(**kwargs).fingerprint
        for kwargs in ({}, {"unit": 16}, {"heldout_fraction": 0.3})
    }
    self.assertLen(names, 3)

  def test_max_heldout_sequences(self):
    corpus = self.prepare(heldout_fraction=0.4, max_heldout_sequences=2)
    self.assertEqual(corpus.heldout.num_sequences, 2)

  def test_short_text(self):
    self.source = self.folder / "short.txt"
    self.source.write_text("short")
    with self.assertRaisesRegex(ValueError, "fewer than one sequence of 32"):
      self.prepare()

  def test_bad_fraction(self):
    with self.assertRaisesRegex(ValueError, "between 0 and 1"):
      self.prepare(heldout_fraction=1.0)


class BatchesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.create_tempdir().full_path)
    source = folder / "text.txt"
    source.write_bytes(np.random.default_rng(0).bytes(2000))
    self.corpus = data.prepare(
        str(source), data.ByteTokenizer(), folder, sequence_length=16, unit=8
    )

  def take(self, count, **kwargs):
    kwargs = {"batch_size": 8, "seed": 3} | kwargs
    batches = data.train_batches(self.corpus, **kwargs)
    return [b["tokens"] for b in itertools.islice(batches, count)]

  def test_depend_on_seed_and_step_alone(self):
    steps = self.take(6)
    np.testing.assert_array_equal(self.take(2, first_step=4), steps[4:])
    self.assertFalse(np.array_equal(self.take(1, seed=4), steps[:1]))

  @parameterized.parameters(2, 4)
  def test_are_the_same_for_any_number_of_processes(self, count):
    whole = self.take(4, first_step=2)
    parts = [
        self.take(4, first_step=2, process_index=i, process_count=count)
        for i in range(count)
    ]
    for step in range(4):
      rows = np.concatenate([part[step] for part in parts])
      np.testing.assert_array_equal(rows, whole[step])

  def test_every_epoch_holds_everything_in_another_order(self):
    size = self.corpus.train.num_sequences
    steps = np.concatenate(self.take(2 * size // 8 + 2))
    first, second = steps[:size], steps[size : 2 * size]
    self.assertEqual(set(map(bytes, first)), set(map(bytes, second)))
    self.assertFalse(np.array_equal(first, second))

  @parameterized.parameters(1, 2)
  def test_heldout_holds_everything_once(self, count):
    targets = np.concatenate(
        [
            batch["targets"]
            for i in range(count)
            for batch in data.heldout_batches(
                self.corpus, batch_size=8, process_index=i, process_count=count
            )
        ]
    )
    self.assertEqual((targets >= 0).sum(), self.corpus.heldout.num_tokens)

  def test_batch_size_and_processes(self):
    with self.assertRaisesRegex(ValueError, "batch_size=8 is not a multiple"):
      self.take(1, process_count=3)
