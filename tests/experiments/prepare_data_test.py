# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenised shards: the same text, whole or not at all, whoever makes them."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests.experiments import processes
from titans_jax import data
from titans_jax.data import prepared
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


def _digests(folder):
  return {
      p.name: hashlib.sha256(p.read_bytes()).hexdigest()
      for p in folder.iterdir()
  }


class WorkerTest(absltest.TestCase):

  def test_begins_nothing_behind_its_parent_s_end(self):
    # Given a parent that is gone when the worker has started
    sentinel, parents_end = os.pipe()
    self.addCleanup(os.close, sentinel)
    os.close(parents_end)
    parent = types.SimpleNamespace(sentinel=sentinel)
    with (
        mock.patch.object(multiprocessing, "parent_process", lambda: parent),
        mock.patch.object(os, "_exit", sys.exit),
        self.assertRaises(SystemExit),
    ):
      prepared._start_worker("byte")


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
    self.assert_is_the_whole(output)

  def test_what_a_killed_call_s_worker_begins_late_does_not_stay(self):
    output = self.folder / "late"
    shutil.copytree(self.whole, output)
    finished = prepared._finished

    def late(directory, number):
      (directory / "shard-00002.0123456789ab.part").touch()
      return finished(directory, number)

    with mock.patch.object(prepared, "_finished", late):
      prepared.write(
          self.source, "byte", output, num_workers=1, shard_bytes=2**20
      )
    self.assert_is_the_whole(output)

  def assert_is_the_whole(self, output):
    self.assertCountEqual(
        [p.name for p in output.iterdir()],
        [p.name for p in self.whole.iterdir()],
    )
    self.assertEqual(_digests(output), _digests(self.whole))

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
    shutil.copytree(self.whole, copy)
    tokenizer.fingerprint = "another"
    with self.assertRaisesRegex(ValueError, "made with another tokenizer"):
      prepare(copy)
    (copy / "shard-00001.array_record").unlink()
    with self.assertRaisesRegex(ValueError, "shard-00001.* is missing"):
      prepare(copy)
