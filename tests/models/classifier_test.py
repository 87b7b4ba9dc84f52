# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The classifier: padding changes nothing, every token counts."""

import functools

from absl.testing import absltest
import jax
import numpy as np

from titans_jax.models import classifier
from titans_jax.models import presets
from titans_jax.training import step as step_lib


class ClassifierTest(absltest.TestCase):

  def test_padding_changes_nothing(self):
    config = presets.tiny(
        variant="mac", num_layers=1, dtype="float64", param_dtype="float64"
    )
    model = classifier.Classifier(config, 3)
    variables = {"params": step_lib.init_params(model, 0)}
    rng = np.random.default_rng(0)
    tokens = rng.integers(256, size=(2, 21)).astype(np.int32)
    apply = jax.jit(model.apply)
    expected = np.stack(
        [apply(variables, tokens[:1])[0], apply(variables, tokens[1:, :13])[0]]
    )
    lengths = np.array([21, 13], np.int32)
    mask = np.arange(30) < lengths[:, None]
    padded = np.where(mask, np.pad(tokens, ((0, 0), (0, 9))), 7)
    logits = apply(variables, padded.astype(np.int32), lengths)
    np.testing.assert_allclose(logits, expected, atol=1e-9)
    loss, metrics, _ = jax.jit(functools.partial(model.apply, method="loss"))(
        variables, padded, np.array([2, -1]), lengths
    )
    logits = expected[0]
    np.testing.assert_allclose(
        loss, np.log(np.exp(logits).sum()) - logits[2], rtol=1e-6
    )
    with self.subTest("what memories write and forget costs"):
      more, _, _ = jax.jit(
          functools.partial(model.apply, method="loss", memory_cost=0.5)
      )(variables, padded, np.array([2, -1]), lengths)
      gauges = metrics["memory"]
      cost = gauges.effort.mean() + padded.shape[1] * gauges.forget.mean()
      np.testing.assert_allclose(more - loss, 0.5 * cost, rtol=1e-6)
      self.assertGreater(cost, 1e-3)
    self.assertEqual(int(metrics["num_tokens"]), 1)
    self.assertEqual(float(metrics["accuracy"]), float(logits.argmax() == 2))
    with self.subTest("full attention holds no more"):
      config = presets.tiny(variant="transformer", window=None, max_length=16)
      model = classifier.Classifier(config, 2)
      with self.assertRaisesRegex(
          ValueError, "max_length=16 tokens, but a row"
      ):
        model.init(jax.random.key(0), tokens)
    changed = tokens.copy()
    changed[0, 4] = (changed[0, 4] + 1) % 256
    difference = apply(variables, changed[:1])[0] - expected[0]
    self.assertGreater(np.abs(difference).max(), 1e-6)
