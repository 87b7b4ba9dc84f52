# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Coefficients of the dual form, against their recurrences."""

from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.memory import rule


def _system(decay):
  """Returns I - diag(decay) Z."""
  size = decay.shape[0]
  return np.eye(size) - np.diag(decay[1:], -1)


class SolveTest(parameterized.TestCase):

  @parameterized.product(size=[1, 2, 3, 7, 8, 16, 33], transpose=[False, True])
  def test_is_the_bidiagonal_solve(self, size, transpose):
    rng = np.random.default_rng(size)
    decay = rng.uniform(size=size)
    x = rng.normal(size=(size, 3))
    matrix = _system(decay)
    expected = np.linalg.solve(matrix.T if transpose else matrix, x)
    actual = rule.solve(jnp.array(decay)[:, None], jnp.array(x), transpose)
    np.testing.assert_allclose(actual, expected, atol=1e-12)

  @parameterized.parameters(False, True)
  def test_gradient(self, transpose):
    rng = np.random.default_rng(0)
    decay = jnp.array(rng.uniform(size=(9, 1)))
    x = jnp.array(rng.normal(size=(9, 4)))

    def by_inverse(decay, x):
      matrix = jnp.eye(9) - decay * jnp.eye(9, k=-1)
      return jnp.linalg.solve(matrix.T if transpose else matrix, x)

    for argument in (0, 1):
      actual, expected = (
          jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argument)(decay, x)
          for f in (lambda d, x: rule.solve(d, x, transpose), by_inverse)
      )
      np.testing.assert_allclose(actual, expected, atol=1e-12)

  def test_exact_at_the_ends_of_the_range(self):
    # No logarithms, no divisions: alpha = 1 and eta = 0 are ordinary values.
    decay = jnp.array([[0.0], [1.0], [0.0], [1.0], [1.0]])
    x = jnp.arange(5.0)[:, None]
    np.testing.assert_array_equal(
        rule.solve(decay, x)[:, 0], [0.0, 1.0, 2.0, 5.0, 9.0]
    )


@jax.jit
def _coefficients(gates, written):
  return (
      rule.coefficients(gates, written),
      rule.last_coefficients(gates, written),
  )


class CoefficientsTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=10, deadline=None)
  @hypothesis.given(
      size=st.integers(1, 9),
      channels=st.sampled_from([1, 3]),
      momentum=st.booleans(),
      seed=st.integers(0, 2**16),
  )
  def test_reproduce_the_recurrence(self, size, channels, momentum, seed):
    # Given gates, some at the ends of their range, and tokens left unwritten
    rng = np.random.default_rng(seed)
    alpha = rng.choice([0.0, 1.0, 0.3, 0.9], size=(size, channels))
    theta = rng.uniform(size=size)
    eta = rng.choice([0.0, 1.0, 0.5], size=size)
    written = rng.uniform(size=size) < 0.7
    gates = rule.ChunkGates(
        jnp.array(alpha), jnp.array(theta), jnp.array(eta) if momentum else None
    )
    (coefficients, last), (at_end, last_again) = jax.device_get(
        _coefficients(gates, jnp.array(written))
    )
    # When W and S, of one row, follow the recurrence with gradients u
    gradients = rng.normal(size=(size, channels))
    w_0, s_0 = rng.normal(size=(2, channels))
    w, s = w_0, s_0 * momentum
    for t in range(size):
      if written[t]:
        s = (eta[t] * s if momentum else 0) - theta[t] * gradients[t]
        w = (1 - alpha[t]) * w + s
      # Then the dual form gives the same W at every token
      dual = coefficients.weights[t] * w_0
      dual -= np.sum(coefficients.gradients[t] * gradients, axis=0)
      if momentum:
        dual += coefficients.momentum[t] * s_0
      np.testing.assert_allclose(dual, w, atol=1e-12)
    # And S at the last
    if momentum:
      dual = last.momentum * s_0 - last.gradients @ gradients
      np.testing.assert_allclose(dual, s, atol=1e-12)
    # And the short way gives the last row
    expected = jax.tree.map(lambda c: c[-1], coefficients)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, atol=1e-12),
        (at_end, last_again),
        (expected, last),
    )
