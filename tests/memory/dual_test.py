# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A chunk's coefficients made by blocks, against the recurrences' own."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.memory import dual
from titans_jax.memory import rule


def gates(size, layers=2, momentum=True, mask=False, seed=0):
  """Draws alpha, theta, eta [b, L] and mu [b], some at the ends of their range."""
  rng = np.random.default_rng(seed)
  alpha = rng.choice([0.0, 1.0, 0.1, 0.6], size=(size, layers))
  theta = rng.uniform(size=(size, layers))
  eta = rng.choice([0.0, 1.0, 0.5], size=(size, layers)) if momentum else None
  written = rng.uniform(size=size) < 0.7 if mask else np.ones(size, bool)
  return alpha, theta, eta, written


def of_many(given):
  """Returns the coefficients of one chunk, made as those of many are."""
  return [
      jax.tree.map(lambda x: x[0], c)
      for c in dual.coefficients(jax.tree.map(lambda x: x[None], given))
  ]


def in_kernel(widths):
  return lambda given: dual.coefficients_in_kernel(given, widths)


def by_blocks(make, alpha, theta, eta, written, mask):
  """Returns every layer's coefficients from `dual`, in the tokens' order."""
  on = written[:, None]

  def rows(x):
    return dual.arrange(jnp.asarray(x)).T

  given = dual.Gates(
      rows(jnp.where(on, 1 - alpha, 1)),
      None if eta is None else rows(jnp.where(on, eta, 1)),
      rows(on.astype(float)) if mask else None,
      rows(jnp.where(on, theta, 0)).reshape(1, -1),
  )

  def in_order(c):
    def restore(x):
      if x is None or x.shape == (1, 1):
        return x
      x = dual.restore(x) if x.shape[0] > 1 else x
      return dual.restore(x.T).T if x.shape[1] == written.size else x

    return dual.Coefficients(*map(restore, c))

  return [in_order(c) for c in make(given)]


def by_recurrence(alpha, theta, eta, written):
  """Returns the same from `rule`."""
  result = []
  for layer in range(alpha.shape[1]):
    c, last = rule.coefficients(
        rule.ChunkGates(
            alpha[:, layer : layer + 1],
            theta[:, layer],
            None if eta is None else eta[:, layer],
        ),
        jnp.asarray(written),
    )
    result.append(
        dual.Coefficients(
            c.weights,
            c.momentum,
            c.gradients[..., 0],
            c.weights[-1:],
            None if last is None else c.momentum[-1:],
            c.gradients[-1:, :, 0],
            None if last is None else last.momentum.reshape(1, 1),
            None if last is None else last.gradients[None],
        )
    )
  return result


class CoefficientsTest(parameterized.TestCase):

  @parameterized.product(
      size=[1, 5, 8, 12, 16, 24, 80],
      momentum=[True, False],
      mask=[True, False],
  )
  def test_are_those_of_the_recurrence(self, size, momentum, mask):
    drawn = gates(size, momentum=momentum, mask=mask, seed=size)
    expected = by_recurrence(*drawn)
    # A width that beta and f are repeated to, and one that they are not.
    for make in (of_many, in_kernel((3, 130))):
      self.check(
          jax.jit(lambda make=make: by_blocks(make, *drawn, mask))(), expected
      )

  def check(self, actual, expected):
    self.assertEqual(len(actual), len(expected))
    for a, e in zip(actual, expected):
      jax.tree.map(
          lambda a, e: np.testing.assert_allclose(
              a, np.broadcast_to(e, a.shape), atol=1e-12
          ),
          a,
          e,
      )

  def test_a_long_chunk_has_more_blocks(self):
    drawn = gates(512, layers=1)
    actual = jax.jit(lambda: by_blocks(of_many, *drawn, False))()
    self.check(actual, by_recurrence(*drawn))

  @parameterized.parameters((8, True), (8, False), (12, True))
  def test_derivatives_are_exact_at_the_ends_of_the_range(self, size, momentum):
    alpha, theta, eta, written = gates(size, momentum=momentum, mask=True)

    def gradients(coefficients):
      def objective(given):
        rng = np.random.default_rng(0)
        return sum(
            jnp.sum(x * rng.normal(size=x.shape))
            for x in jax.tree.leaves(coefficients(*given, written))
        )

      given = (alpha, theta) if eta is None else (alpha, theta, eta)
      return jax.jit(jax.grad(objective))(given)

    def with_eta(fn):
      if momentum:
        return fn
      return lambda alpha, theta, written: fn(alpha, theta, None, written)

    expected = gradients(with_eta(by_recurrence))
    # One column each, so that all have the same leaves.
    for make in (of_many, in_kernel((130, 130))):
      actual = gradients(
          with_eta(lambda *given, make=make: by_blocks(make, *given, True))
      )
      for a, e in zip(actual, expected):
        np.testing.assert_allclose(a, e, atol=1e-10)


class ArrangeTest(parameterized.TestCase):

  @parameterized.parameters(1, 5, 8, 12, 64)
  def test_restore_undoes_it(self, size):
    x = jnp.arange(2 * size).reshape(size, 2)
    np.testing.assert_array_equal(dual.restore(dual.arrange(x)), x)

  def test_puts_tokens_of_all_blocks_side_by_side(self):
    np.testing.assert_array_equal(
        dual.arrange(jnp.arange(24)),
        jnp.arange(24).reshape(8, 3).T.reshape(-1),
    )


if __name__ == "__main__":
  from absl.testing import absltest

  absltest.main()
