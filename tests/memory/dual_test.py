# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A chunk's coefficients made by blocks, against the recurrences' own."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.memory import dual
from titans_jax.memory import products
from titans_jax.memory import rule


def gates(size, layers=2, momentum=True, mask=False, seed=0):
  """Draws gates [L, b], some at the ends of their range."""
  rng = np.random.default_rng(seed)
  alpha = rng.choice([0.0, 1.0, 0.1, 0.6], size=(layers, size))
  theta = rng.uniform(size=(layers, size))
  eta = rng.choice([0.0, 1.0, 0.5], size=(layers, size)) if momentum else None
  written = rng.uniform(size=size) < 0.7 if mask else np.ones(size, bool)
  return alpha, theta, eta, written


def spread(alpha, theta, eta, written, mask):
  """Returns them as `dual.coefficients` takes them."""
  keep = np.where(written, 1 - alpha, 1)
  mu = np.broadcast_to(written.astype(float), keep.shape)
  return dual.SpreadGates(
      dual.spread(jnp.array(keep)),
      None
      if eta is None
      else dual.spread(jnp.array(np.where(written, eta, 1))),
      dual.spread(jnp.array(mu)) if mask else None,
      jnp.array(np.where(written, theta, 0)),
  )


class CoefficientsTest(parameterized.TestCase):

  @parameterized.product(
      size=[1, 5, 8, 12, 16, 24, 80],
      momentum=[True, False],
      mask=[True, False],
  )
  def test_are_those_of_the_recurrence(self, size, momentum, mask):
    drawn = gates(size, momentum=momentum, mask=mask, seed=size)
    # One width that comes out of the joining product, one that does not.
    widths = (3, 130)
    actual = jax.jit(dual.coefficients, static_argnums=1)(
        spread(*drawn, mask), widths
    )
    alpha, theta, eta, written = drawn
    for layer, (c, width) in enumerate(zip(actual, widths)):
      expected, last = rule.coefficients(
          rule.ChunkGates(
              jnp.array(alpha[layer])[:, None],
              jnp.array(theta[layer]),
              None if eta is None else jnp.array(eta[layer]),
          ),
          jnp.array(written),
      )

      def same(actual, expected):
        np.testing.assert_allclose(
            actual, np.broadcast_to(expected, actual.shape), atol=1e-12
        )

      same(c.start[:, :width], expected.weights)
      same(c.gradients, expected.gradients[..., 0])
      same(c.last_start[0], expected.weights[-1:])
      same(c.last_gradients, expected.gradients[-1:, :, 0])
      if momentum:
        same(c.start[:, width:], expected.momentum)
        same(c.last_start[1], expected.momentum[-1:])
        same(c.momentum, last.momentum)
        same(c.momentum_gradients, last.gradients[None])

  def test_bfloat16_products_leave_them_exact(self):
    drawn = gates(64)
    given = jax.tree.map(lambda x: x.astype(jnp.float32), spread(*drawn, False))
    exact = dual.coefficients(given, (8, 8))
    fast = dual.coefficients(given, (8, 8), jnp.bfloat16)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, atol=2e-7), fast, exact
    )


class ExactProductTest(parameterized.TestCase):

  def test_is_float32_made_of_bfloat16(self):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 16, 40)).astype(np.float32)
    expected = a.T.astype(float) @ b
    size = np.abs(a).T @ np.abs(b)

    def error(actual):
      return (np.abs(actual - expected) / size).max()

    self.assertLess(error(products.exact_tn(a, b, jnp.bfloat16)), 1e-6)
    rounded = products.matmul_tn(a, b, jnp.dtype(jnp.bfloat16))
    self.assertGreater(error(rounded), 1e-4)


if __name__ == "__main__":
  from absl.testing import absltest

  absltest.main()
