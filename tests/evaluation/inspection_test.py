# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is seen at single tokens is what happens in the whole text."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import titans_jax as titans
from titans_jax import tokenizers
from titans_jax.evaluation import inspection

_TEXT = b"a memory that learns, a memory that learns, and more of it" * 3


class TraceTest(parameterized.TestCase):

  def test_is_that_of_the_whole_text(self):
    config = titans.presets.tiny(
        variant="mac",
        num_layers=1,
        vocab_size=257,
        num_persistent=0,
        memory=titans.memory.MLP(depth=1, residual=False),
    )
    model = titans.TitansLM(config)
    variables = jax.jit(model.init)(
        jax.random.key(0), np.zeros((1, 8), np.int32)
    )
    tokenizer = tokenizers.ByteTokenizer()
    ids = tokenizer.encode(_TEXT)
    seen = []
    found = inspection.trace(
        model, variables, tokenizer, ids, progress=seen.append
    )
    self.assertEqual(seen, [127, len(ids)])

    @jax.jit
    def read(variables):
      tokens = jnp.asarray(np.append(256, ids))[None]
      log_probs = [
          model.apply(
              variables,
              tokens[:, :-1],
              tokens[:, 1:],
              update_memory=learns,
              method="score",
          )[0][0]
          for learns in (True, False)
      ]
      gauges = [
          model.apply(variables, x, x, method="loss")[1]["memory"]
          for x in (tokens, tokens[:, :1])
      ]
      return log_probs, gauges

    (learned, unlearned), (gauges, first) = read(variables)
    np.testing.assert_allclose(found.log_prob, learned, atol=1e-4)
    np.testing.assert_allclose(found.log_prob_unlearned, unlearned, atol=1e-4)
    self.assertGreater(np.abs(found.contribution).max(), 1e-3)
    # The call's gauges are means over its tokens, the document token included.
    for name in ("surprise", "forget", "learning_rate", "momentum"):
      per_token = getattr(found, name)
      self.assertEqual(per_token.shape, (len(ids), 1))
      total = per_token.sum(axis=0) + getattr(first, name)
      np.testing.assert_allclose(
          total / (len(ids) + 1), getattr(gauges, name), rtol=1e-4
      )

  def test_what_is_written_later_stands_at_its_token(self):
    config = titans.presets.tiny(
        variant="lmm",
        num_layers=1,
        vocab_size=257,
        conv_size=0,
        read_before_write=True,
    )
    model = titans.TitansLM(config)
    variables = jax.jit(model.init)(jax.random.key(0), **model.init_inputs())
    tokenizer = tokenizers.ByteTokenizer()
    gates = [
        inspection.trace(
            model, variables, tokenizer, tokenizer.encode(text)
        ).forget[:, 0]
        for text in (b"abcdef", b"abXdef")
    ]
    self.assertLen(gates[0], 6)
    changed = np.flatnonzero(np.abs(gates[0] - gates[1]) > 1e-9)
    np.testing.assert_array_equal(changed, [2])

  def test_refuses_what_has_nothing_to_watch(self):
    tokenizer = tokenizers.ByteTokenizer()
    without = titans.TitansLM(
        titans.presets.tiny(variant="transformer", num_layers=1)
    )
    with self.assertRaisesRegex(ValueError, "no memory"):
      inspection.trace(without, {}, tokenizer, np.zeros(3, np.int32))
    model = titans.TitansLM(titans.presets.tiny(variant="lmm", num_layers=1))
    with self.assertRaisesRegex(ValueError, "no text"):
      inspection.trace(model, {}, tokenizer, np.zeros(0, np.int32))


class ReplacingTokenizer(tokenizers.ByteTokenizer):
  """Decodes as byte fallback does: parts of characters are replaced."""

  def decode(self, ids):
    return super().decode(ids).decode(errors="replace").encode()


class PiecesTest(parameterized.TestCase):

  @parameterized.product(
      text=(
          "plain",
          "zwölf",
          "€ and 🙂!",
          "é",
          "日本語",
          "🙂é🙂",
          "a real \ufffd one",
          "ab\ufffd",
      ),
      tokenizer=(tokenizers.ByteTokenizer(), ReplacingTokenizer()),
  )
  def test_make_the_text(self, text, tokenizer):
    ids = tokenizer.encode(text.encode())
    found = inspection.pieces(tokenizer, ids)
    self.assertLen(found, len(ids))
    self.assertEqual("".join(found), text)
    if "\ufffd" not in text:  # A character is its last token's.
      ends = np.cumsum([len(c.encode()) for c in text]) - 1
      self.assertEqual([found[end] for end in ends], list(text))

  def test_bytes_that_are_no_text(self):
    tokenizer = tokenizers.ByteTokenizer()
    text = b"\xff\xe6\x97\xa5 \xe6\x97"
    found = inspection.pieces(tokenizer, tokenizer.encode(text))
    self.assertEqual("".join(found), text.decode(errors="replace"))
