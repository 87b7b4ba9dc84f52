# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Training over eight devices is training on one."""

import functools

from absl.testing import parameterized
import jax
import numpy as np
import pytest

import titans_jax as titans
from titans_jax import parallel
from titans_jax.training import config as config_lib
from titans_jax.training import optimizer as optimizer_lib
from titans_jax.training import step as step_lib

_STEPS = 20
_MIXED = parallel.ParallelConfig("fsdp_tp", data=2, fsdp=2, tensor=2)


def _batch():
  """Returns a packed batch of eight rows, half of them of two documents."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(256, size=(8, 33)).astype(np.int32)
  documents = np.zeros((8, 32), np.int32)
  documents[::2, 16:] = 1
  return {
      "tokens": tokens[:, :-1],
      "targets": tokens[:, 1:],
      "document_ids": documents,
      "mask": np.ones((8, 32), bool),
  }


def _train(config, layout, num_devices, accumulation=1, carried_rows=None):
  """Returns the losses of the first steps, and the state behind them."""
  model = titans.TitansLM(config)
  optimizer = optimizer_lib.make_optimizer(config_lib.OptimizerConfig(), 100)
  mesh = parallel.make_mesh(layout, jax.devices()[:num_devices])
  with jax.set_mesh(mesh):
    like = step_lib.abstract_state(model, optimizer, mesh, layout, carried_rows)
    state = step_lib.create_state(model, optimizer, 0, like)
    step = step_lib.jit_train_step(
        model, optimizer, like=like, accumulation=accumulation
    )
    losses = []
    for _ in range(_STEPS):
      state, metrics = step(state, parallel.place(_batch(), 8))
      losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1, "a step was compiled again"
  return np.array(losses), state


def _bytes_on_one(tree):
  return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@functools.cache
def _expected(variant):
  """Returns the losses of a variant that one device trains."""
  return _train(_config(variant), parallel.ParallelConfig(), 1)[0]


def _config(variant, **overrides):
  return titans.presets.tiny(variant=variant, num_layers=1, **overrides)


class TrainingTest(parameterized.TestCase):

  def test_losses_are_those_of_one_device(self):
    self.check_mixed("transformer")

  @pytest.mark.exhaustive
  def test_losses_are_those_of_one_device_with_segments(self):
    self.check_mixed("mac")

  @parameterized.parameters("lmm", "mag", "mal")
  @pytest.mark.exhaustive
  def test_losses_are_those_of_one_device_too(self, variant):
    self.check_mixed(variant)

  def check_mixed(self, variant):
    config = _config(variant)
    # Given training on one device
    expected = _expected(variant)
    # When rows, parameters and heads lie over eight
    losses, state = _train(config, _MIXED, 8)
    # Then it learns the same
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    self.assertLess(losses[-1], losses[0])
    # And a device holds little more than its quarter of the state
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    self.assertLess(_bytes_on_one(state), 0.35 * whole)

  @parameterized.parameters("dp", "fsdp")
  def test_layouts(self, layout):
    config = _config("transformer")
    expected = _expected("transformer")
    losses, state = _train(config, parallel.ParallelConfig(layout), 8)
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    share = {"dp": 1.0, "fsdp": 0.3}[layout]
    self.assertLessEqual(_bytes_on_one(state), share * whole)

  @pytest.mark.exhaustive
  def test_kernel_in_interpret_mode(self):
    # Given the kernel, which XLA cannot partition
    config = _config("lmm", implementation="pallas")
    expected = _expected("lmm")
    losses, _ = _train(config, _MIXED, 8)
    np.testing.assert_allclose(losses, expected, atol=1e-5)

  @pytest.mark.exhaustive
  def test_state_carried_from_step_to_step(self):
    config = _config("lmm")
    one, mixed = (
        _train(config, layout, devices, carried_rows=8)
        for layout, devices in ((parallel.ParallelConfig(), 1), (_MIXED, 8))
    )
    # What a carried state was rounded to goes on through all steps after it.
    np.testing.assert_allclose(mixed[0], one[0], rtol=2e-5)
    # Rows and heads of what a memory has learned lie apart.
    weights = mixed[1].model_state[0].mixer.memory.chunk_start.weights[0]
    self.assertEqual(
        weights.addressable_shards[0].data.nbytes * 8, weights.nbytes
    )

  def test_accumulation(self):
    config = _config("transformer")
    expected = _expected("transformer")
    losses, _ = _train(config, _MIXED, 8, accumulation=2)
    np.testing.assert_allclose(losses, expected, atol=1e-5)
