# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Needles in haystacks: the texts, the score, and training on them."""

import re

from absl.testing import parameterized
import numpy as np

from titans_jax import data
from titans_jax.evaluation import needles
from titans_jax.models import config as model_config
from titans_jax.models import language_model


class NeedlesTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = data.ByteTokenizer()
    cls.needles = needles.Needles("builtin", cls.tokenizer)

  @parameterized.parameters(
      ("passkey", r"\d{7}"),
      ("number", r"\d{7}"),
      ("word", r"[a-z]+-[a-z]+"),
      ("uuid", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
  )
  def test_the_text_holds_what_is_asked(self, task, value):
    seen = set()
    for seed in range(20):
      rng = np.random.default_rng(seed)
      example = self.needles.draw(task, 700, rng.random(), rng)
      self.assertEqual(len(example.prompt) + len(example.answer), 700)
      self.assertEqual(example.prompt[0], self.tokenizer.document_token)
      text = self.tokenizer.decode(example.prompt).decode()
      (found,) = re.findall(r"magic \w+ for (\S+) is: (.*?)\.", text)
      key, magic = found
      self.assertRegex(magic, f"^{value}$")
      self.assertEqual(magic, example.target)
      self.assertEqual(
          self.tokenizer.decode(example.answer).decode(), f" {magic}"
      )
      self.assertEndsWith(
          text,
          f"magic {needles.TASKS[task][1]} for {key} mentioned in the"
          " provided text is",
      )
      self.assertEqual(text.count(magic), 1)
      self.assertEqual("The grass is green" in text, task == "passkey")
      seen.add(magic)
    self.assertGreater(len(seen), 18)

  @parameterized.parameters("passkey", "number")
  def test_the_needle_stands_at_its_depth(self, task):
    for depth in (0.0, 0.5, 1.0):
      example = self.needles.draw(task, 4000, depth, np.random.default_rng(3))
      text = self.tokenizer.decode(example.context).decode(errors="replace")
      _, _, behind = text.partition("afterwards.\n")
      place = behind.index(" One of the special") / len(behind)
      self.assertAlmostEqual(place, depth, delta=0.04)

  def test_score(self):
    rng = np.random.default_rng(0)
    example = self.needles.draw("word", 600, 0.5, rng)
    self.assertTrue(
        needles.is_right(example, f"It is {example.target.upper()}!")
    )
    self.assertFalse(needles.is_right(example, example.target[:-1]))

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, "--lengths=300: A uuid needle"):
      self.needles.check(["uuid"], 300, "--lengths")
    with self.assertRaisesRegex(ValueError, "data.tasks: 'pin' is none of"):
      needles.NeedleData(tasks="number,pin")
    with self.assertRaisesRegex(ValueError, "least_length=600 is more than"):
      needles.NeedleData(least_length=600)


class TaskTest(parameterized.TestCase):

  def task(self, **options):
    model = language_model.TitansLM(
        model_config.TitansConfig(
            variant="lmm",
            vocab_size=257,
            model_dim=8,
            num_heads=1,
            num_layers=1,
        )
    )
    options = {"tasks": "number", "batch_size": 3} | options
    return needles.make_task(model, needles.NeedleData(**options), 0)

  def test_batches_are_those_of_their_step(self):
    task = self.task()
    batches = task.batches(0)
    first, second = next(batches), next(batches)
    again = next(self.task().batches(1))
    for name, value in second.items():
      np.testing.assert_array_equal(value, again[name])
    self.assertTrue((first["tokens"] != second["tokens"]).any())

  def test_question_and_answer_are_scored(self):
    batch = next(self.task().batches(0))
    for tokens, targets, mask in zip(
        batch["tokens"], batch["targets"], batch["mask"]
    ):
      scored = np.flatnonzero(targets >= 0)
      np.testing.assert_array_equal(np.diff(scored), 1)  # in one piece
      # Every target is the next token, and behind the last one the end.
      self.assertEqual(scored[-1], mask.sum() - 1)
      np.testing.assert_array_equal(targets[scored[:-1]], tokens[scored[1:]])
      self.assertEqual(targets[scored[-1]], 256)
      text = data.ByteTokenizer().decode(targets[scored]).decode()
      self.assertRegex(text, r"^\nWhat is the special .* text is \d{7}$")

  def test_another_task_is_another_run(self):
    prints = {
        self.task(**options).fingerprint
        for options in (
            {},
            {"tasks": "word"},
            {"least_length": 500},
            {"batch_size": 4},
        )
    }
    self.assertLen(prints, 4)
