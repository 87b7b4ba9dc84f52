# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretraining as a user sees it: files, kills, resumed runs, clear errors."""

import json
import os
import random
import shutil
import signal
import time
from unittest import mock

from absl.testing import parameterized
import jax
import numpy as np
import pytest

from tests.experiments import processes


class PretrainTest(parameterized.TestCase):
  """All cases are held against one run that nothing interrupts."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)
    cls.text = processes.write_text(cls.folder / "text.txt")
    # Half of a packed sequence a step: what a run that goes on must find is
    # the memory too.
    cls.arguments = (
        *processes.TINY,
        "--config.data.segments=2",
        f"--config.data.source={cls.text}",
    )
    cls.whole = cls.folder / "whole"
    cls.finished = processes.run(
        "pretrain", f"--workdir={cls.whole}", *cls.arguments
    )

  def pretrain(self, workdir, *args, **kwargs):
    return processes.run(
        "pretrain", f"--workdir={workdir}", *self.arguments, *args, **kwargs
    )

  def copy(self, workdir, name):
    target = self.folder / name
    shutil.copytree(workdir, target)
    return target

  def assert_same_run(self, workdir):
    self.assertEqual(processes.curve(workdir), processes.curve(self.whole))
    jax.tree.map(
        np.testing.assert_array_equal,
        processes.params(workdir),
        processes.params(self.whole),
    )

  def assert_error(self, process, message):
    self.assertEqual(process.returncode, 1, process.stdout + process.stderr)
    self.assertRegex(process.stderr, message)
    self.assertNotIn("Traceback", process.stderr)

  def test_leaves_what_it_says(self):
    out = self.finished.stdout
    self.assertEqual(self.finished.returncode, 0, out + self.finished.stderr)
    run = json.loads((self.whole / "config.json").read_text())
    self.assertEqual(run["model"]["variant"], "lmm")
    self.assertEqual(run["train"]["num_steps"], 60)
    rows = processes.curve(self.whole)
    losses = [row["loss"] for row in rows if "loss" in row]
    self.assertLen(losses, 60)
    self.assertLess(losses[-1], 0.8 * losses[0])
    evaluations = [row for row in rows if "eval_loss" in row]
    self.assertEqual([row["step"] for row in evaluations], [25, 50, 60])
    bits = evaluations[-1]["eval_bits_per_byte"]
    self.assertIn(f"Held-out bits per byte: {bits:.4f}; a bigram byte", out)
    self.assertNotEmpty(list(self.whole.glob("events.out.tfevents*")))
    self.assertGreater((self.whole / "learning_curve.png").stat().st_size, 5000)
    self.assertRegex(out, r"held out: [\d,]+ tokens in [\d,]+, \d.\d% padding")
    self.assertIn("A sample:\n\nThe ", out)
    self.assertIn(str(self.whole / "checkpoints"), out)
    self.assertIn("--config.model.variant=mag", out)

  @pytest.mark.exhaustive
  def test_finished_run_is_only_reported_again(self):
    workdir = self.copy(self.whole, "again")
    again = self.pretrain(workdir)
    self.assertEqual(again.returncode, 0, again.stderr)
    tail = self.finished.stdout.partition("Held-out bits")[2]
    self.assertEqual(
        again.stdout.partition("Held-out bits")[2],
        tail.replace(str(self.whole), str(workdir)),
    )
    self.assert_same_run(workdir)

  @pytest.mark.exhaustive
  def test_killed_run_resumes_bit_for_bit(self):
    row = random.randint(16, 45)  # behind the first whole checkpoint
    workdir = self.folder / "killed"
    status, _ = processes.stop_at_row(
        workdir, row, signal.SIGKILL, *self.arguments
    )
    self.assertEqual(status, -signal.SIGKILL, f"killed at row {row}")
    resumed = self.pretrain(workdir)
    self.assertEqual(resumed.returncode, 0, resumed.stderr)
    self.assertRegex(resumed.stdout, r"Resuming from step \d+\.")
    self.assert_same_run(workdir)

  @pytest.mark.slow
  def test_terminated_run_saves_and_resumes_bit_for_bit(self):
    row = random.randint(2, 30)
    workdir = self.folder / "terminated"
    status, output = processes.stop_at_row(
        workdir, row, signal.SIGTERM, *self.arguments
    )
    self.assertEqual(status, 0, output)
    self.assertRegex(output, r"Stopped by SIGTERM at step \d+; the last good")
    self.assertNotIn("A sample", output)
    with self.subTest("no space for the next checkpoint"):
      # A file may not grow past what a checkpoint needs: as on a full disk,
      # the write fails part of the way.
      limited = self.copy(workdir, "no_space")
      before = {p.name for p in (limited / "checkpoints").iterdir()}
      failed = self.pretrain(limited, file_blocks=48)
      # (The checkpoint library's own threads print more than this.)
      self.assertEqual(failed.returncode, 1)
      self.assertRegex(failed.stderr, "Error: Saving the .* of step .* failed")
      self.assertRegex(failed.stderr, "the last good checkpoint is .*no_space")
      kept = {p.name for p in (limited / "checkpoints").iterdir()}
      self.assertContainsSubset(before, kept)
    resumed = self.pretrain(workdir)
    self.assertEqual(resumed.returncode, 0, resumed.stderr)
    self.assertIn("Resuming from step", resumed.stdout)
    self.assert_same_run(workdir)

  @parameterized.parameters("truncated", "undescribed")
  def test_damaged_checkpoint_is_passed_over(self, damage):
    self.check_passed_over(damage)

  @pytest.mark.exhaustive
  def test_checkpoint_without_its_arrays_is_passed_over(self):
    self.check_passed_over("missing")

  @pytest.mark.exhaustive
  def test_run_goes_on_before_a_damaged_checkpoint(self):
    workdir = self.check_passed_over("flipped")
    resumed = self.pretrain(workdir)
    self.assertEqual(resumed.returncode, 0, resumed.stderr)
    self.assertRegex(resumed.stderr, "checkpoints/60 is damaged and is passed")
    self.assertIn("Resuming from step 56.", resumed.stdout)
    self.assertTrue((workdir / "checkpoints" / "60.damaged").exists())
    self.assert_same_run(workdir)

  def check_passed_over(self, damage):
    workdir = self.copy(self.whole, f"damaged_{damage}")
    newest = workdir / "checkpoints" / "60"
    damaged = "_METADATA" if damage == "undescribed" else "d/*"
    for path in (newest / "params").rglob(damaged):
      content = bytearray(path.read_bytes())
      if damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
      elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
      else:
        path.unlink()
    sample = processes.run(
        "generate", f"--checkpoint={workdir}", "--prompt=o", "--seed=1"
    )
    self.assertEqual(sample.returncode, 0, sample.stderr)
    self.assertRegex(sample.stderr, "checkpoints/60 is damaged and is passed")
    self.assertIn("Checkpoint of step 56.", sample.stderr)
    return workdir

  def test_no_whole_checkpoint(self):
    workdir = self.copy(self.whole, "ruined")
    for path in (workdir / "checkpoints").rglob("*"):
      if path.is_file():
        path.write_bytes(b"")
    self.assert_error(self.pretrain(workdir), "None of the checkpoints")
    sample = processes.run("generate", f"--checkpoint={workdir}", "--prompt=o")
    self.assert_error(sample, "None of the checkpoints .* can be read")

  def test_workdir_of_another_run(self):
    process = self.pretrain(self.whole, "--config.optimizer.learning_rate=0.5")
    self.assert_error(
        process, "another run: optimizer.learning_rate is 0.003 there and 0.5"
    )

  def test_checkpoints_of_another_run(self):
    workdir = self.copy(self.whole, "other_checkpoints")
    (workdir / "config.json").write_text(
        (workdir / "config.json").read_text().replace('"seed": 0', '"seed": 5')
    )
    process = self.pretrain(workdir, "--config.seed=5")
    self.assert_error(process, "another run: seed is 0 there and 5 here")

  def test_reading_a_checkpoint_leaves_one_that_is_being_saved(self):
    workdir = self.copy(self.whole, "saving")
    part = workdir / "checkpoints" / "67.orbax-checkpoint-tmp"
    part.mkdir()
    processes.params(workdir)
    self.assertTrue(part.exists())

  @pytest.mark.exhaustive
  def test_parameters_of_another_run(self):
    # Given a finished run, another begins with its parameters in bfloat16
    workdir = self.folder / "fine_tuned"
    process = self.pretrain(
        workdir,
        f"--init_from={self.whole}",
        "--config.model.param_dtype=bfloat16",
        "--config.train.num_steps=4",
        "--config.train.profile_at=2",
        "--sample_tokens=0",
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertIn(f"Parameters of step 60 of {self.whole}", process.stdout)
    self.assertNotEmpty(list((workdir / "profile").rglob("*.xplane.pb")))
    first, before = (processes.curve(d)[0] for d in (workdir, self.whole))
    self.assertLess(first["loss"], 0.8 * before["loss"])
    process = self.pretrain(
        self.folder / "refused",
        f"--init_from={self.whole}",
        "--config.model.vocab_size=300",
    )
    self.assert_error(process, "embedding is .257, 16., .* vocabularies differ")

  def test_other_first_parameters(self):
    process = self.pretrain(self.whole, f"--init_from={self.whole}")
    self.assert_error(process, f"began with --init_from=None, not {self.whole}")

  def test_other_data(self):
    workdir = self.copy(self.whole, "other_data")
    kept = self.text.read_bytes()
    try:
      processes.write_text(self.text, seed=1)
      self.assert_error(self.pretrain(workdir), "started on other data")
    finally:
      self.text.write_bytes(kept)

  @pytest.mark.slow
  def test_loss_that_is_not_finite(self):
    workdir = self.folder / "not_finite"
    process = self.pretrain(
        workdir,
        "--config.optimizer.learning_rate=1e39",
        "--config.optimizer.warmup_steps=9",
        "--config.train.checkpoint_every=1",
    )
    self.assert_error(process, r"norm is (nan|inf) at step \d+ .*memory: ")
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    self.assertIsNone(last["param_norm"])
    # No checkpoint holds what is not finite.
    self.assertFalse(
        any(p.name.isdigit() for p in (workdir / "checkpoints").iterdir())
    )

  @parameterized.parameters("mac", "transformer")
  @pytest.mark.exhaustive
  def test_other_variants(self, variant):
    workdir = self.folder / variant
    args = (
        f"--config.model.variant={variant}",
        "--config.train.num_steps=2",
        "--config.train.checkpoint_every=2",
    )
    if variant == "transformer":  # full attention
      args += ("--config.model.window=None", "--config.model.max_length=64")
    process = self.pretrain(workdir, *args)
    self.assertEqual(process.returncode, 0, process.stderr)
    run = json.loads((workdir / "config.json").read_text())
    self.assertEqual(run["model"]["variant"], variant)
    self.assertLen(processes.curve(workdir), 3)

  @parameterized.parameters(
      ("--config.model.varient=mac", "[Dd]id you mean.*variant"),
      ("--config.model.num_layers=many", "many"),
      ("--no_such_flag", "Unknown command line flag"),
      ("surplus", "Unexpected arguments"),
  )
  def test_command_line_that_does_not_parse(self, argument, message):
    workdir = self.folder / "unparsed"
    process = self.pretrain(workdir, argument)
    self.assertNotEqual(process.returncode, 0)
    self.assertRegex(process.stderr + process.stdout, message)
    self.assertFalse(workdir.exists())

  @parameterized.parameters(
      ("--config.model.num_heads=3", "num_heads=3"),
      ("--config.data.source=/no/such/file", "matches no file"),
      ("--config.data.tokenizer=/no/such/file", "/no/such/file"),
      ("--config.model.vocab_size=100", "vocab_size=100 is smaller"),
      ("--config.data.sequence_length=80000", "fewer than one sequence"),
  )
  def test_values_that_do_not_fit(self, arguments, message):
    process = self.pretrain(self.folder / "unfit", *arguments.split())
    self.assert_error(process, message)
    self.assertNotIn("Compiled", process.stdout)


class GenerateTest(parameterized.TestCase):
  """Continues prompts with a model that a short run left."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)
    cls.workdir = cls.folder / "run"
    text = processes.write_text(cls.folder / "text.txt")
    processes.run(
        "pretrain",
        f"--workdir={cls.workdir}",
        *processes.TINY,
        f"--config.data.source={text}",
        "--config.train.num_steps=7",
        "--sample_tokens=0",
    )

  def generate(self, *args):
    return processes.run("generate", f"--checkpoint={self.workdir}", *args)

  def test_prompts_of_a_file_are_the_prompts_alone(self):
    prompts = self.folder / "prompts.txt"
    prompts.write_text("one two\n\nthree\n")
    options = ("--temperature=0", "--max_new_tokens=12")
    batch = self.generate(f"--prompt_file={prompts}", *options)
    self.assertEqual(batch.returncode, 0, batch.stderr)
    texts = batch.stdout.split("\n---\n")[:-1]
    for text, prompt in zip(texts, ("one two", "three"), strict=True):
      self.assertStartsWith(text, prompt)
    # The one that is padded in the batch
    alone = self.generate("--prompt=three", *options)
    self.assertEqual(alone.stdout, texts[1] + "\n")

  @pytest.mark.exhaustive
  def test_an_exported_model_writes_the_same(self):
    exported = self.folder / "exported"
    arguments = f"--checkpoint={self.workdir}", f"--output={exported}"
    process = processes.run("export", *arguments)
    self.assertIn("the model of step 7", process.stdout, process.stderr)
    options = "--prompt=one two", "--temperature=0", "--max_new_tokens=12"
    texts = [
        processes.run("generate", f"--checkpoint={path}", *options).stdout
        for path in (self.workdir, exported)
    ]
    self.assertStartsWith(texts[0], "one two")
    self.assertEqual(*texts)
    processes.assert_refused(
        self, processes.run("export", *arguments), "is not empty"
    )

    def evaluate(path, *args):
      text = f"--text={self.folder / 'text.txt'}", "--max_tokens=1000"
      results = f"--workdir={self.folder / 'evaluated'}"
      return processes.run(
          "evaluate", f"--checkpoint={path}", results, *text, *args
      )

    processes.assert_refused(self, evaluate(exported), "give --length")
    for path in (self.workdir, exported):
      process = evaluate(path, "--length=32")
      self.assertEqual(process.returncode, 0, process.stderr)
    results = json.loads(
        (self.folder / "evaluated" / "results.json").read_text()
    )
    here, there = results["models"]["run"], results["models"]["exported"]
    self.assertEqual(here | {"step": None}, there)
    self.assertBetween(here["perplexity"], 2, 300)
    self.assertEqual(here["tokens"], 1000)
    self.assertRegex(
        process.stdout,
        r"(?s)\(nats per token\) by position.*\nexported +\d\.\d{3} ",
    )
    processes.assert_refused(self, evaluate(exported, "--length=16"), "length")
    with self.subTest("tasks of lm-eval"):
      pytest.importorskip("lm_eval", reason="the extra `eval` is missing")
      data = self.folder / "tasks" / "lambada_openai"
      data.mkdir(parents=True)
      (data / "test.jsonl").write_text('{"text": "one two three"}\n')
      arguments = (
          f"--checkpoint={exported}",
          f"--workdir={self.folder / 'on_tasks'}",
          f"--data_dir={data.parent}",
      )
      process = processes.run("evaluate", *arguments, "--tasks=lambada_openai")
      self.assertRegex(
          process.stdout, r"lambada_openai perplexity +\d", process.stderr
      )
      self.assertIn("Titans (MAC)", process.stdout)
      processes.assert_refused(
          self, processes.run("evaluate", *arguments), "--text or --tasks"
      )
      (data / "test.jsonl").write_text('{"text": "one two four"}\n')
      processes.assert_refused(
          self,
          processes.run("evaluate", *arguments, "--tasks=lambada_openai"),
          "has lambada_openai of exported on other data",
      )
      start = time.monotonic()
      nothing = {
          "HF_ENDPOINT": "http://127.0.0.1:9",
          "HF_HOME": str(self.folder / "empty"),
      }
      with mock.patch.dict(os.environ, nothing):
        process = processes.run(
            "evaluate",
            f"--checkpoint={exported}",
            f"--workdir={self.folder / 'of_the_hub'}",
            "--tasks=lambada_openai",
        )
      processes.assert_refused(self, process, "Without a network give a folder")
      self.assertLess(time.monotonic() - start, 90)

  @parameterized.parameters(
      ((), "Give --prompt or --prompt_file"),
      (("--prompt=a", "--prompt_file=b"), "Give --prompt or --prompt_file"),
      (("--prompt_file=/no/such/file",), "/no/such/file"),
      (("--prompt=a", "--temperature=-1"), "temperature must be at least 0"),
      (("--prompt=a", "--step=3"), "no checkpoint of step 3"),
      (("--prompt=a", "--checkpoint=tests"), "holds no checkpoint"),
  )
  def test_bad_input(self, args, message):
    process = self.generate(*args)
    self.assertEqual(process.returncode, 1)
    self.assertRegex(process.stderr, message)
    self.assertNotIn("Traceback", process.stderr)
