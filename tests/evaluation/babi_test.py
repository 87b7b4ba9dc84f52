# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""BABILong: stories, texts, and the benchmark's scoring rule."""

import pathlib

from absl.testing import parameterized
import numpy as np

from titans_jax import data
from titans_jax.evaluation import answers
from titans_jax.evaluation import babi

_STORIES = """\
1 Mary moved to the bathroom.
2 John  went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Mary moved to the garden.
5 Where is Mary? \tgarden\t4
1 Daniel took the apple.
2 What is Daniel carrying?\tapple,milk\t1
"""
_PLACES = ["bathroom", "garden", "kitchen"]


class StoriesTest(parameterized.TestCase):

  def read(self, text):
    path = pathlib.Path(self.create_tempfile(content=text).full_path)
    return babi.read_stories(str(path))

  def test_every_question_has_the_facts_before_it(self):
    first, second, third = self.read(_STORIES)
    self.assertEqual(
        first,
        babi.Story(
            ("Mary moved to the bathroom.", "John went to the hallway."),
            "Where is Mary?",
            "bathroom",
        ),
    )
    self.assertEqual(second.facts, first.facts + ("Mary moved to the garden.",))
    self.assertEqual(third.facts, ("Daniel took the apple.",))
    self.assertEqual(third.answer, "apple,milk")

  @parameterized.parameters(
      ("Mary moved.\n", "line 1: expected a number"),
      ("1 Where is Mary?\tgarden\t1\n", "facts before it"),
      ("1 Mary moved.\n2 Where is she?\t\t1\n", "needs an answer"),
      ("1 Mary moved.\n", "holds no question"),
  )
  def test_bad_files(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      self.read(text)

  def test_no_file(self):
    with self.assertRaisesRegex(ValueError, "--stories='' is no file"):
      babi.read_stories("", "--stories")

  def test_facts_are_scattered_in_order(self):
    tokenizer = data.ByteTokenizer()
    stories = self.read(_STORIES)
    makes = babi.Stories(stories[1:2], "builtin", tokenizer, shots=stories[2:])
    gaps = []
    for seed in range(10):
      example = makes.draw(4000, np.random.default_rng(seed))
      self.assertEqual(len(example.prompt) + len(example.answer), 4000)
      text = tokenizer.decode(example.prompt).decode(errors="replace")
      places = [text.index(f" {fact}") for fact in stories[1].facts]
      self.assertEqual(places, sorted(places))
      gaps.append(np.ptp(places))
      self.assertEndsWith(text, "\nQuestion: Where is Mary? Answer:")
      self.assertEqual(tokenizer.decode(example.answer), b" garden")
      self.assertIn("Question: What is Daniel carrying? Answer: apple", text)
    self.assertGreater(np.mean(gaps), 1000)
    with self.assertRaisesRegex(ValueError, "--lengths=100: .* no story"):
      makes.check(100, "--lengths")

  @parameterized.parameters(
      (" garden", True),
      ("The most recent location of Mary is GARDEN. Not kitchen.", True),
      (" kitchen", False),
      (" garden or kitchen", False),
      (" garden<context>kitchen", True),
      (" garden\nQuestion: bathroom", True),
      ("", False),
      (" bathroom garden", True),  # what the question names does not count
  )
  def test_the_benchmarks_score(self, said, right):
    none = np.zeros(0, np.int32)
    example = answers.Example(
        none, none, none, "Where was Mary before the bathroom?", "garden"
    )
    self.assertEqual(babi.is_right(example, said, _PLACES), right)

  def test_score_of_several_things(self):
    none = np.zeros(0, np.int32)
    example = answers.Example(none, none, none, "What?", "apple,milk")
    labels = babi.Stories(
        [
            babi.Story(("Daniel took it.",), "What?", answer)
            for answer in ("apple,milk", "football")
        ],
        "noise",
        data.ByteTokenizer(),
    ).labels
    self.assertEqual(labels, ["apple", "football", "milk"])
    self.assertTrue(babi.is_right(example, " apple,milk", labels))
    self.assertTrue(babi.is_right(example, "milk and apple", labels))
    self.assertFalse(babi.is_right(example, "apple", labels))
    self.assertFalse(babi.is_right(example, "apple milk football", labels))
