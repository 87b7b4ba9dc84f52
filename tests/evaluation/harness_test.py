# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""lm-eval's requests are answered as whole forward passes would answer them."""

import json
import pathlib
import types

from absl.testing import absltest
import jax
import numpy as np
import pytest

import titans_jax as titans
from titans_jax import tokenizers

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
from titans_jax.evaluation import harness  # pylint: disable=g-import-not-at-top


def requests(*arguments):
  return [types.SimpleNamespace(args=args) for args in arguments]


CONTEXTS = (
    "The sun is",
    "",
    "A long one, of more than one piece:" + 9 * " ab",
)
PAIRS = [
    (context, continuation)
    for context in CONTEXTS
    for continuation in ("yellow", "a star that shines", "x")
]


class HarnessCase(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    config = titans.presets.tiny(variant="lmm", num_layers=1, vocab_size=257)
    cls.model = titans.TitansLM(config)
    cls.variables = jax.jit(cls.model.init)(
        jax.random.key(0), np.zeros((1, 8), np.int32)
    )
    cls.apply = staticmethod(jax.jit(cls.model.apply))

  def harness(self, **options):
    return harness.HarnessModel(
        self.model,
        self.variables,
        tokenizers.ByteTokenizer(),
        batch_size=4,
        **options,
    )

  def expected(self, context, continuation):
    """Scores a continuation by one forward pass over the whole."""
    ids = np.array([256, *(context + continuation).encode()], np.int32)
    padded = np.zeros((1, 96), np.int32)  # What stands behind is not seen.
    padded[0, : len(ids)] = ids
    logits, _ = self.apply(self.variables, padded)
    log_probs = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
    first = len(ids) - len(continuation)
    places = np.arange(first - 1, len(ids) - 1)
    greedy = log_probs[places].argmax(axis=1) == ids[first:]
    return log_probs[places, ids[first:]].sum(), bool(greedy.all())


class HarnessModelTest(HarnessCase):

  def test_loglikelihoods_are_those_of_whole_passes(self):
    expected = [self.expected(*pair) for pair in PAIRS]
    for share in (True, False):
      found = self.harness(share_prefixes=share).loglikelihood(requests(*PAIRS))
      np.testing.assert_allclose(
          [x[0] for x in found], [x[0] for x in expected], atol=1e-4
      )
      self.assertEqual([x[1] for x in found], [x[1] for x in expected])

  def test_spaces_between_are_the_continuation_s(self):
    model = self.harness()
    (found,), (expected,) = (
        model.loglikelihood(requests(pair))
        for pair in (("The sun is ", "red"), ("The sun is", " red"))
    )
    self.assertEqual(found, expected)

  def test_rolling_is_the_sum_over_the_text(self):
    texts = ("One text.", "", "Another text, longer than the first. " * 2)
    found = self.harness().loglikelihood_rolling(
        requests(*((t,) for t in texts))
    )
    for text, value in zip(texts, found, strict=True):
      expected = self.expected("", text)[0] if text else 0
      self.assertAlmostEqual(value, expected, delta=1e-4)

  def test_answers_end_where_they_are_told(self):
    model = self.harness(max_new_tokens=12)
    whole, cut = model.generate_until(
        requests(("The sun", {"until": []}), ("The sun", {"max_gen_toks": 5}))
    )
    self.assertStartsWith(whole, cut)
    self.assertLess(len(cut), len(whole))
    stop = whole[3]
    (short,) = model.generate_until(requests(("The sun", {"until": [stop]})))
    self.assertEqual(short, whole[: whole.index(stop)])
    with self.assertRaisesRegex(ValueError, r"\['num_beams'\] of generation"):
      model.generate_until(requests(("a", {"num_beams": 4})))

  def test_bad_requests(self):
    with self.assertRaisesRegex(ValueError, "to be scored behind 'abc'"):
      self.harness().loglikelihood(requests(("abc", "")))
    narrow = titans.TitansLM(titans.presets.tiny())
    with self.assertRaisesRegex(ValueError, "up to 256, but .* is 256"):
      harness.HarnessModel(narrow, {}, tokenizers.ByteTokenizer())


class TasksTest(HarnessCase):
  """The paper's tasks run on data in their form."""

  DATA = {
      "piqa": [
          {"goal": "Boil water", "sol1": "Heat it", "sol2": "Cool", "label": 0},
          {"goal": "Dry hair", "sol1": "Wet it", "sol2": "Blow", "label": 1},
      ],
      "lambada_openai": [{"text": "the cat sat on the mat"}],
      "wikitext": [{"page": " = Title = \n Some words of a page . \n"}],
      "boolq": [
          {"passage": "It rains.", "question": "is it dry", "label": 0},
      ],
  }

  def write(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    for name, documents in self.DATA.items():
      (folder / name).mkdir()
      split = "test" if name in ("lambada_openai", "wikitext") else "validation"
      lines = "".join(json.dumps(d) + "\n" for d in documents)
      (folder / name / f"{split}.jsonl").write_text(lines)
    return folder

  def test_end_to_end(self):
    tasks = harness.make_tasks(list(self.DATA), self.write())
    found = harness.evaluate(self.harness(), tasks)
    self.assertEqual(set(found), set(self.DATA))
    self.assertIn(found["piqa"]["acc"], (0, 0.5, 1))
    expected, _ = self.expected("the cat sat on the", " mat")
    self.assertAlmostEqual(
        found["lambada_openai"]["perplexity"] / np.exp(-expected), 1, places=3
    )
    self.assertGreater(found["wikitext"]["bits_per_byte"], 1)
    self.assertIn("acc", found["boolq"])

  def test_bad_input(self):
    folder = self.write()
    with self.assertRaisesRegex(ValueError, "'piqua' is no task.*'piqa'"):
      harness.make_tasks(["piqua"], folder)
    with self.assertRaisesRegex(ValueError, "'ai2_arc' is a group of tasks"):
      harness.make_tasks(["ai2_arc"], folder)
    with self.assertRaisesRegex(ValueError, "neither validation.jsonl nor"):
      harness.make_tasks(["hellaswag"], folder)
    path = folder / "piqa" / "validation.jsonl"
    path.write_text('{"goal": "Boil", "sol1": "a", "sol2": "b"}\n')
    with self.assertRaisesRegex(ValueError, "piqa.*label"):
      harness.make_tasks(["piqa"], folder)
    whole = json.dumps(self.DATA["piqa"][0])
    path.write_text(whole + '\n{"sol1": "a", "sol2": "b", "label": 1}\n')
    with self.assertRaisesRegex(ValueError, "Document 2 of piqa .* 'goal'"):
      harness.make_tasks(["piqa"], folder)
    path.write_text("{\n")
    with self.assertRaisesRegex(
        ValueError, "piqa could not be loaded from .* in the form"
    ):
      harness.make_tasks(["piqa"], folder)


if __name__ == "__main__":
  absltest.main()
