# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The forecaster's symmetries, and the linear baseline's formula."""

from absl.testing import absltest
import jax
import numpy as np

from titans_jax.models import forecaster
from titans_jax.models import presets
from titans_jax.training import step as step_lib


def randomized(params, scale=0.3):
  """Returns parameters that are all different from their initial ones."""
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(1)
  leaves = [
      x + scale * rng.normal(size=x.shape).astype(x.dtype) for x in leaves
  ]
  return jax.tree.unflatten(tree, leaves)


class ForecasterTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    config = presets.tiny(
        variant="lmm",
        model_dim=16,
        num_heads=2,
        num_layers=1,
        chunk_size=2,
        dtype="float64",
        param_dtype="float64",
    )
    cls.model = forecaster.Forecaster(
        config, look_back=16, horizon=6, channels=3, period=4, patch_length=4
    )
    cls.params = step_lib.init_params(cls.model, 0)
    rng = np.random.default_rng(0)
    cls.history = rng.normal(size=(2, 16, 3))
    cls.phase = np.array([[1], [3]], np.int32) + np.arange(22) % 4
    cls.phase %= 4
    cls.apply = staticmethod(
        jax.jit(lambda p, *args: cls.model.apply({"params": p}, *args))
    )

  def test_starts_as_the_mean_of_what_was_seen(self):
    y = self.apply(self.params, self.history, self.phase)
    mean = self.history.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(y, np.broadcast_to(mean, y.shape), atol=1e-9)

  def test_follows_scale_and_level_and_reads_channels_apart(self):
    params = randomized(self.params)
    y = self.apply(params, self.history, self.phase)
    # (What keeps a deviation of zero from being divided by is 1e-5.)
    scaled = self.apply(params, 3 * self.history + 5, self.phase)
    np.testing.assert_allclose(scaled, 3 * y + 5, rtol=1e-3, atol=1e-3)
    other = self.history.copy()
    other[:, :, 2] = 0.5
    changed = self.apply(params, other, self.phase)
    np.testing.assert_allclose(changed[:, :, :2], y[:, :, :2], atol=1e-12)
    self.assertGreater(np.abs(changed - y)[:, :, 2].max(), 1e-3)

  def test_a_season_is_the_calendar_s(self):
    # A step's phase moves its own forecast alone (and what was seen, all).
    params = randomized(self.params)
    y = self.apply(params, self.history, self.phase)
    phase = self.phase.copy()
    phase[:, -1] = (phase[:, -1] + 1) % 4
    later = self.apply(params, self.history, phase)
    np.testing.assert_array_equal(later[:, :-1], y[:, :-1])
    self.assertGreater(np.abs(later - y)[:, -1].max(), 1e-3)

  def test_hidden_steps_are_not_read(self):
    params = randomized(self.params)
    weights = np.ones_like(self.history)
    y = self.apply(params, self.history, self.phase, weights)
    np.testing.assert_array_equal(
        y, self.apply(params, self.history, self.phase)
    )
    # Two steps change places, which leaves mean and deviation alone.
    changed = self.history.copy()
    changed[0, [5, 9], 1] = changed[0, [9, 5], 1]
    seen = self.apply(params, changed, self.phase, weights)
    self.assertGreater(np.abs(seen - y)[0, :, 1].max(), 1e-3)
    weights[0, [5, 9], 1] = 0
    hidden = [
        self.apply(params, x, self.phase, weights)
        for x in (self.history, changed)
    ]
    np.testing.assert_allclose(*hidden, atol=1e-9)

  def test_the_memory_is_read(self):
    params = randomized(self.params)
    other = jax.tree.map(lambda x: x, params)
    mixer = other["blocks"]["mixer"]["memory"]
    mixer["initial_weights_0"] = mixer["initial_weights_0"] + 1.0
    difference = self.apply(params, self.history, self.phase) - self.apply(
        other, self.history, self.phase
    )
    self.assertGreater(np.abs(difference).max(), 1e-4)

  def test_patches_must_fill_the_window(self):
    model = self.model.clone(patch_length=5)
    with self.assertRaisesRegex(ValueError, "patch_length=5 does not divide"):
      model.init(jax.random.key(0), **model.init_inputs())


class DLinearTest(absltest.TestCase):

  def test_formula(self):
    model = forecaster.DLinear(look_back=12, horizon=3, channels=2, average=5)
    params = randomized(step_lib.init_params(model, 0))
    rng = np.random.default_rng(0)
    history = rng.normal(size=(2, 12, 2)).astype(np.float32)
    phase = np.zeros((2, 15), np.int32)
    y = model.apply({"params": params}, history, phase)
    padded = np.pad(history, ((0, 0), (2, 2), (0, 0)), mode="edge")
    trend = np.stack([padded[:, i : i + 5].mean(1) for i in range(12)], 1)
    expected = sum(
        np.einsum("blc,lh->bhc", x, params[name]["kernel"])
        + params[name]["bias"][:, None]
        for name, x in (("trend", trend), ("rest", history - trend))
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)
    future = rng.normal(size=(2, 3, 2)).astype(np.float32)
    loss, metrics, _ = model.apply(
        {"params": params}, history, phase, future, method="loss"
    )
    np.testing.assert_allclose(
        loss, ((expected - future) ** 2).mean() / 2, rtol=1e-5
    )
    self.assertEqual(int(metrics["num_tokens"]), 12)


if __name__ == "__main__":
  absltest.main()
