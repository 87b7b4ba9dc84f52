# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Classification of DNA as a user runs it."""

import json

from absl.testing import parameterized
import numpy as np
import pytest

from tests.data import genomes_test
from tests.experiments import processes

SMALL = (
    "--smoke",
    "--config.model.num_layers=1",
    "--config.model.model_dim=16",
    "--config.data.sequence_length=64",
    "--config.data.batch_size=8",
)


class GenomicsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)

  def benchmark(self, name, **classes):
    """Writes a folder in GenomicBenchmarks' form."""
    for part in ("train", "test"):
      genomes_test.write_classes(self.folder / name / part, classes)
    return self.folder / name

  @pytest.mark.exhaustive
  def test_a_folder_of_classes(self):
    rng = np.random.default_rng(0)
    sequences = {
        name: ["".join(rng.choice(list(bases), 50)) for _ in range(20)]
        for name, bases in (("negative", "AC"), ("positive", "GT"))
    }
    folder = self.benchmark("human_ocr_ensembl", **sequences)
    workdir = self.folder / "classes"
    args = (
        f"--data={folder}",
        f"--workdir={workdir}",
        "--variants=lmm",
        *SMALL,
    )
    process = processes.run("genomics", *args)
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertIn("HyenaDNA", process.stdout)
    results = json.loads((workdir / "results.json").read_text())
    self.assertEqual(results["experiment"], "genomics")
    self.assertEqual(list(results["models"]["lmm"]), ["0"])
    # Bases that the other class never has are learned in twenty steps.
    self.assertGreater(results["models"]["lmm"]["0"]["test"], 0.75)

  @pytest.mark.slow
  def test_motifs(self):
    workdir = self.folder / "motifs"
    args = (f"--workdir={workdir}", "--variants=transformer", *SMALL)
    args += "--config.model.window=16", "--motifs=300", "--lengths=64,96"
    process = processes.run("genomics", *args)
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertIn("can relay 16 bases", process.stdout)
    results = json.loads((workdir / "results.json").read_text())
    accuracy = results["models"]["transformer"]["0"]
    self.assertEqual(list(accuracy), ["64", "96"])
    self.assertBetween(min(accuracy.values()), 0.3, 0.7)
    # Its model is trained further, on longer sequences.
    further = self.folder / "further"
    process = processes.run(
        "genomics",
        "--smoke",
        f"--workdir={further}",
        f"--init_from={workdir / 'transformer_0'}",
        "--config.data.sequence_length=96",
        "--config.data.batch_size=8",
        "--motifs=300",
        "--lengths=96",
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertIn("Parameters of step 20", process.stdout)
    run = json.loads((further / "transformer_0" / "config.json").read_text())
    self.assertEqual(run["model"]["model_dim"], 16)
    self.assertEqual(run["data"]["sequence_length"], 96)
    self.assertEqual(run["init_from"], str(workdir / "transformer_0"))
    with self.subTest("a model of other classes"):
      three = {name: ["ACGT" * 20] * 20 for name in "abc"}
      other = self.folder / "three_classes"
      process = processes.run(
          "genomics",
          "--smoke",
          f"--workdir={other}",
          f"--data={self.benchmark('three', **three)}",
          f"--init_from={workdir / 'transformer_0'}",
          "--config.data.batch_size=8",
      )
      message = (
          "that of another model: its head/bias is (2,), this model's (3,)"
      )
      processes.assert_refused(self, process, message)
      self.assertFalse((other / "transformer_0").exists())

  def test_bad_input(self):
    folder = self.benchmark("bad", a=["ACGT"], b=["ACXT"])
    one = self.benchmark("one", a=["ACGT"])
    few = self.benchmark("few", a=["ACGT"], b=["ACGT"])
    processes.assert_all_refused(
        self,
        "genomics",
        (
            ("--data=/nowhere", "there is no /nowhere/train.csv"),
            (f"--data={folder}", "'X' at base 3"),
            (f"--data={one}", "has 1 classes"),
            (f"--data={few}", "batch_size=32 is more than the 1"),
            ("--config.data.sequence_length=32", "does not hold the two sites"),
            ("--variants=cnn", "--variants: 'cnn' is none of"),
            ("--lengths=64,x", "lengths"),
            ("--init_from=/nowhere", "Give the folder of one run"),
        ),
    )
    workdir = self.folder / "both"
    for both, message in (
        (
            (f"--data={few}", "--motifs=9"),
            "--motifs is of the motif task: not with --data",
        ),
        (
            ("--init_from=run", "--variants=mag"),
            "--variants means nothing with --init_from",
        ),
        (
            ("--init_from=run", "--config.model.window=8"),
            "--config.model.window means nothing with --init_from",
        ),
    ):
      process = processes.run("genomics", f"--workdir={workdir}", *both)
      processes.assert_refused(self, process, message)
    self.assertFalse(workdir.exists())
