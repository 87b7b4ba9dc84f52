# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenised shards: the same text, whole or not at all, whoever makes them."""

import json
import signal
import subprocess
import time

from absl.testing import parameterized
import numpy as np

from tests.experiments import processes
from titans_jax import data
from titans_jax.data import sources


def _write_sources(folder):
  """Writes documents in three formats, and returns them in their order."""
  import pyarrow
  from pyarrow import parquet  # pylint: disable=g-import-not-at-top

  rng = np.random.default_rng(0)
  texts = [
      "".join(rng.choice(list("abc déf \n"), rng.integers(1, 3000)))
      for _ in range(3000)
  ]
  lines = [json.dumps({"text": text}) for text in texts[:1500]]
  (folder / "a.jsonl").write_text("\n".join(lines) + "\n\n")
  table = pyarrow.table({"id": range(1498), "text": texts[1500:2998]})
  parquet.write_table(table, folder / "b.parquet", row_group_size=100)
  for name, text in zip(("c.txt", "d.txt"), texts[2998:]):
    (folder / name).write_text(text)
  return [text.encode() for text in texts]


def _contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


class PrepareDataTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)
    (cls.folder / "in").mkdir()
    cls.texts = _write_sources(cls.folder / "in")
    cls.source = f"{cls.folder}/in/*"
    cls.whole = cls.folder / "whole"
    cls.process = processes.run("prepare_data", *cls.arguments(cls.whole))

  @classmethod
  def arguments(cls, output, *args):
    return (
        f"--source={cls.source}",
        f"--output={output}",
        "--shard_mib=1",
        "--num_workers=2",
        *args,
    )

  def test_parts_are_the_whole(self):
    for size in (10_000, 300_000, 10**9):
      found = [
          text
          for part in sources.parts(self.source, size)
          for text in part.documents()
      ]
      self.assertEqual(found, list(sources.documents(self.source)))
    self.assertEqual(found, self.texts)

  def test_trains_on_the_same_tokens(self):
    self.assertEqual(self.process.returncode, 0, self.process.stderr)
    self.assertIn("3,000 documents, ", self.process.stdout)
    tokenizer = data.make_tokenizer("byte")
    corpora = [
        data.prepare(
            source, tokenizer, self.folder / name, sequence_length=64, unit=8
        )
        for source, name in ((self.source, "text"), (str(self.whole), "shards"))
    ]
    self.assertEqual(corpora[0].fingerprint, corpora[1].fingerprint)
    self.assertEqual(corpora[0].heldout_bytes, corpora[1].heldout_bytes)
    np.testing.assert_array_equal(corpora[0].tokens, corpora[1].tokens)
    index = json.loads((self.whole / "index.json").read_text())
    self.assertEqual(index["documents"], 3000)
    self.assertEqual(index["bytes"], sum(map(len, self.texts)))
    self.assertGreater(len(index["shards"]), 3)

  def test_killed_half_way_goes_on(self):
    output = self.folder / "killed"
    process = subprocess.Popen(
        processes.command("prepare_data", *self.arguments(output)),
        cwd=processes.ROOT,
        env=processes.environment(),
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(output.glob("*.array_record")):
      self.assertLess(time.monotonic(), deadline)
      self.assertIsNone(process.poll())
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    self.assertFalse((output / "index.json").exists())
    again = processes.run("prepare_data", *self.arguments(output))
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertEqual(_contents(output), _contents(self.whole))

  def test_refuses_what_does_not_fit(self):
    for arguments, message in (
        (self.arguments(self.whole, "--shard_mib=2"), "begun with other files"),
        (
            (f"--source={self.folder}/no", f"--output={self.folder}/x"),
            "matches no file",
        ),
        (self.arguments(self.folder / "in"), "holds other files"),
    ):
      process = processes.run("prepare_data", *arguments)
      processes.assert_refused(self, process, message)

  def test_missing_shard_and_other_tokenizer(self):
    tokenizer = data.make_tokenizer("byte")

    def prepare(source):
      return data.prepare(
          str(source),
          tokenizer,
          self.folder / "bad",
          sequence_length=64,
          unit=8,
      )

    copy = self.folder / "copy"
    copy.mkdir()
    for name, content in _contents(self.whole).items():
      (copy / name).write_bytes(content)
    tokenizer.fingerprint = "another"
    with self.assertRaisesRegex(ValueError, "made with another tokenizer"):
      prepare(copy)
    (copy / "shard-00001.array_record").unlink()
    with self.assertRaisesRegex(ValueError, "shard-00001.* is missing"):
      prepare(copy)
