# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A workdir in a bucket, on a server of this machine that speaks its protocol."""

import os

from absl.testing import absltest
from etils import epath
import pytest

from tests.experiments import processes
from tests.experiments import storage_server


class BucketTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    server = storage_server.Server()
    address = server.start()
    cls.addClassCleanup(server.shutdown)
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
      os.environ[name] = address
      cls.addClassCleanup(os.environ.pop, name)
    cls.folder = processes.folder(cls)
    cls.text = processes.write_text(cls.folder / "text.txt")

  def pretrain(self, workdir, *args):
    return processes.run(
        "pretrain",
        *processes.TINY,
        f"--workdir={workdir}",
        f"--config.data.source={self.text}",
        "--config.train.num_steps=12",
        "--config.train.checkpoint_every=3",
        "--config.train.keep_checkpoints=1",
        "--config.train.keep_every=6",
        *args,
    )

  @pytest.mark.slow
  def test_run_in_a_bucket(self):
    workdir = epath.Path("gs://bucket/run")
    cache = f"--config.data.cache_dir={self.folder / 'cache'}"
    process = self.pretrain(workdir, cache)
    self.assertEqual(process.returncode, 0, process.stderr)
    names = {path.name for path in workdir.iterdir()}
    self.assertContainsSubset(
        {"config.json", "metrics.jsonl", "learning_curve.png", "checkpoints"},
        names,
    )
    self.assertTrue(any(name.startswith("events.out") for name in names))
    steps = {p.name for p in (workdir / "checkpoints").iterdir()}
    self.assertContainsSubset({"6", "12"}, steps)
    self.assertNoCommonElements({"3", "9"}, steps)
    with self.subTest("a damaged checkpoint is passed over"):
      before = (workdir / "metrics.jsonl").read_text()
      for path in (workdir / "checkpoints" / "12" / "params" / "d").iterdir():
        path.write_bytes(b"")
      process = self.pretrain(workdir, cache)
      self.assertEqual(process.returncode, 0, process.stderr)
      self.assertIn("Resuming from step 6.", process.stdout)
      self.assertTrue((workdir / "checkpoints" / "12.damaged").exists())
      losses = [
          [line.partition("tokens_per_second")[0] for line in text.splitlines()]
          for text in (before, (workdir / "metrics.jsonl").read_text())
      ]
      self.assertEqual(*losses)
    sample = processes.run("generate", f"--checkpoint={workdir}", "--prompt=o")
    self.assertEqual(sample.returncode, 0, sample.stderr)
    self.assertIn("Checkpoint of step 12.", sample.stderr)

  def test_text_is_kept_on_this_machine(self):
    process = self.pretrain("gs://bucket/no_cache")
    processes.assert_refused(self, process, "give --config.data.cache_dir")
