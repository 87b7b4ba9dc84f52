# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Experiments that ask questions at the end of long texts, at their smallest."""

import json

from absl.testing import parameterized
import pytest

from tests.experiments import processes

# A run that a second command measures.
ASKED = ("--max_new_tokens=4", "--batch_size=4", "--smoke")
TRAINED = ("--config.data.batch_size=2", *ASKED)
SMALL = (
    "--config.model.num_layers=1",
    "--config.model.model_dim=16",
    "--config.model.window=16",
    "--variants=transformer",
    *TRAINED,
)
FACTS = "".join(
    f"1 Mary moved to the {place}.\n2 Where is Mary? \t{place}\t1\n"
    for place in ("garden", "kitchen", "office")
)


class AskingTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)
    cls.stories = cls.folder / "stories.txt"
    cls.stories.write_text(FACTS)
    cls.essays = cls.folder / "essays.txt"
    cls.essays.write_text(
        "It rains. The sun is out, says Jane. Who knows? " * 20
    )

  def fails(self, message, experiment, *args):
    process = processes.run(experiment, *args)
    self.assertEqual(process.returncode, 1)
    self.assertRegex(process.stderr, message)
    self.assertNotIn("Traceback", process.stderr)

  @pytest.mark.slow
  def test_needles(self):
    workdir = self.folder / "niah"
    args = (f"--workdir={workdir}", f"--haystack={self.essays}", *SMALL)
    process = processes.run("niah", *args)
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertIn("Titans (MAC)", process.stdout)
    results = json.loads((workdir / "results.json").read_text())
    model = results["models"]["transformer"]
    self.assertEqual(set(model["accuracy"]), {"passkey", "number", "word"})
    for by_length in model["accuracy"].values():
      self.assertEqual(list(by_length), ["512", "1024"])
      for by_depth in by_length.values():
        self.assertLen(by_depth, 5)
        self.assertBetween(min(by_depth), 0, 1)
    self.assertEqual(results["paper"]["accuracy"]["TTT"]["word"][0], 78.8)
    self.assertGreater((workdir / "niah.png").stat().st_size, 5000)

    with self.subTest("again"):  # trains and asks for nothing
      again = processes.run("niah", *args)
      self.assertEqual(again.returncode, 0, again.stderr)
      self.assertNotIn("Compiled", again.stdout)
      self.assertNotRegex(again.stdout, r"at [\d,]+ tokens: ")

    with self.subTest("checkpoint"):
      args = (
          f"--workdir={workdir}",
          f"--haystack={self.essays}",
          f"--checkpoint={workdir / 'transformer'}",
          "--tasks=uuid",
          "--lengths=600",
          *ASKED,
      )
      process = processes.run("niah", *args)
      self.assertEqual(process.returncode, 0, process.stderr)
      results = json.loads((workdir / "results.json").read_text())
      accuracy = results["models"]["transformer"]["accuracy"]
      self.assertEqual(list(accuracy["uuid"]), ["600"])
      self.assertLen(accuracy, 4)  # what was measured before is there
      self.fails(
          "was measured otherwise: eval_seed was 0 and is 1",
          "niah",
          *args,
          "--eval_seed=1",
      )

    with self.subTest("init_from"):
      # Trained further as another task's run, with the sizes of its own model.
      process = processes.run(
          "babilong",
          f"--workdir={self.folder / 'further'}",
          f"--init_from={workdir / 'transformer'}",
          f"--config.data.stories={self.stories}",
          f"--stories={self.stories}",
          f"--haystack={self.essays}",
          *TRAINED,
      )
      self.assertEqual(process.returncode, 0, process.stderr)
      self.assertIn("Parameters of step 20 of", process.stdout)
      self.assertIn("paper", process.stdout)
      results = json.loads(
          (self.folder / "further" / "results.json").read_text()
      )
      accuracy = results["models"]["transformer"]["accuracy"]
      self.assertEqual(list(accuracy), ["512", "2048"])
      self.assertGreater(
          (self.folder / "further" / "babilong.png").stat().st_size, 5000
      )

    with self.subTest("few shots"):
      (self.folder / "others.txt").write_text(
          "1 John went to the hall.\n2 Where is John? \thall\t1\n"
      )
      process = processes.run(
          "babilong",
          f"--workdir={self.folder / 'shots'}",
          f"--checkpoint={workdir / 'transformer'}",
          f"--stories={self.stories}",
          f"--haystack={self.essays}",
          "--shots=1",
          f"--shots_from={self.folder / 'others.txt'}",
          "--lengths=500",
          *ASKED,
      )
      self.assertEqual(process.returncode, 0, process.stderr)
      self.assertIn("few-shot", process.stdout)

  @parameterized.parameters(
      ("--tasks=pin", "--tasks: 'pin' is none of"),
      ("--tasks=", "--tasks names none"),
      ("--lengths=", "--lengths names none"),
      ("--lengths=50", "--lengths=50: A passkey needle"),
      ("--haystack=/nowhere", "--haystack='/nowhere' matches no file"),
      ("--samples=7", "--samples=7 is not a multiple of --depths=5"),
      ("--variants=rnn", "--variants: 'rnn' is none of"),
      ("--lengths=1k", "--lengths: '1k' is no positive integer"),
      ("--step=3", "--step=3 needs --checkpoint"),
      ("--checkpoint=x --init_from=y", "give one of the two"),
      ("--checkpoint=/nowhere", "holds no checkpoint"),
      (
          "--checkpoint=x --config.train.num_steps=5",
          "--config.train.num_steps means nothing with --checkpoint",
      ),
      (
          "--init_from=x --config.model.window=8",
          "--config.model.window means nothing with --init_from",
      ),
      (
          "--init_from=x --variants=mac",
          "--variants means nothing with --init_from",
      ),
      ("--config.data.least_length=100", "data.least_length=100: A"),
  )
  def test_bad_needles(self, arguments, message):
    self.fails(
        message, "niah", f"--workdir={self.folder / 'bad'}", *arguments.split()
    )

  @parameterized.parameters(
      ("--stories=/nowhere", "--stories='/nowhere' is no file"),
      ("--shots=2", "--shots=2 and --shots_from=None: give both"),
      ("", "data.stories='' is no file"),
  )
  def test_bad_stories(self, arguments, message):
    self.fails(
        message,
        "babilong",
        f"--workdir={self.folder / 'bad'}",
        f"--stories={self.stories}",
        *arguments.split(),
    )


class TokenizerTest(parameterized.TestCase):

  def test_a_tokenizer_is_learned(self):
    from titans_jax import data  # pylint: disable=g-import-not-at-top

    folder = processes.folder(self)
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat 2026 times. " * 50)
    path = folder / "tokenizer.json"
    args = (f"--source={text}", f"--output={path}")
    process = processes.run("train_tokenizer", *args, "--vocab_size=280")
    self.assertEqual(process.returncode, 0, process.stderr)
    tokenizer = data.make_tokenizer(str(path))
    self.assertLessEqual(tokenizer.vocab_size, 280)
    ids = tokenizer.encode(b" the cat 2026 \xc3\xa9")
    self.assertEqual(tokenizer.decode(ids), b" the cat 2026 \xc3\xa9")
    self.assertEqual(
        [tokenizer.decode([i]) for i in ids[:7]],
        [b" the", b" cat", b" ", b"2", b"0", b"2", b"6"],
    )
    bad = processes.run("train_tokenizer", args[0], "--output=/nowhere/t.json")
    self.assertEqual(bad.returncode, 1)
    self.assertIn("there is no folder /nowhere", bad.stderr)
    self.assertNotIn("Traceback", bad.stderr)


class StateTrackingTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_smoke(self):
    workdir = processes.folder(self)
    args = (
        f"--workdir={workdir}",
        "--models=linear,transformer",
        "--tasks=parity",
        "--smoke",
        "--config.model.num_layers=1",
        "--config.model.model_dim=16",
        "--config.data.sequence_length=16",
        "--config.data.batch_size=8",
    )
    process = processes.run("state_tracking", *args)
    self.assertEqual(process.returncode, 0, process.stderr)
    results = json.loads((workdir / "results.json").read_text())
    self.assertEqual(list(results["models"]), ["linear", "transformer"])
    for result in results["models"].values():
      self.assertEqual(list(result), ["parity"])
      self.assertEqual(
          list(result["parity"]["accuracy"]), ["16", "32", "64", "128", "256"]
      )
    linear = json.loads((workdir / "parity_linear/config.json").read_text())
    self.assertEqual(linear["model"]["memory"]["depth"], 1)
    self.assertFalse(linear["model"]["momentum"])
    self.assertGreater((workdir / "state_tracking.png").stat().st_size, 5000)

  @parameterized.parameters(
      ("--tasks=s6", "--tasks: 's6' is none of"),
      ("--models=", "--models names none"),
  )
  def test_bad_input(self, argument, message):
    process = processes.run("state_tracking", "--workdir=/nowhere", argument)
    self.assertEqual(process.returncode, 1)
    self.assertRegex(process.stderr, message)
    self.assertNotIn("Traceback", process.stderr)
