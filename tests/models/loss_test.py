# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses made in blocks of time are those of all logits at once."""

from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.models import loss as loss_lib


class BlocksTest(parameterized.TestCase):

  @parameterized.parameters(2**24, 2 * 5 * 4, 2 * 5)  # one block, three, eleven
  def test_equal_those_of_all_logits(self, max_logits):
    rng = np.random.default_rng(0)
    hidden, matrix = rng.normal(size=(2, 11, 3)), rng.normal(size=(5, 3))
    targets = rng.integers(5, size=(2, 11))
    weights = rng.integers(2, size=(2, 11)).astype(float)

    def logits_fn(hidden, matrix):
      return hidden @ matrix.T

    logits = logits_fn(hidden, matrix)
    log_z = np.asarray(jax.nn.logsumexp(logits, axis=-1))
    nats = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    right = logits.argmax(axis=-1) == targets
    with mock.patch.object(loss_lib, "_MAX_LOGITS", max_logits):
      each = loss_lib.token_losses(hidden, targets, matrix, logits_fn)
      sums = loss_lib.cross_entropy(
          jnp.asarray(hidden), jnp.asarray(targets), weights, matrix, logits_fn
      )
    np.testing.assert_allclose(each[0], nats, rtol=1e-12)
    np.testing.assert_array_equal(each[1], right)
    expected = (nats * weights, log_z**2 * weights, right * weights)
    np.testing.assert_allclose(sums, [x.sum() for x in expected], rtol=1e-12)
