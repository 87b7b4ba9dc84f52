# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A dense layer's read and update, and their derivatives, against their formulas."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.memory import dense
from titans_jax.memory import dual

SIZE = 5


def read(weights, momentum, c, inputs, deltas, x):
  y = c.weights[:, :1] * (x @ weights)
  if momentum is not None:
    y += c.momentum[:, :1] * (x @ momentum)
  return y - (c.gradients * (x @ inputs.T)) @ deltas


def update(weights, momentum, c, inputs, deltas, closes):
  if closes is not None and not closes:
    return (weights,) if momentum is None else (weights, momentum)
  w = c.last_weights * weights - (c.last_gradients * inputs.T) @ deltas
  if momentum is None:
    return (w,)
  s = c.momentum_kept * momentum - (c.momentum_gradients * inputs.T) @ deltas
  return w + c.last_momentum * momentum, s


def draw(d_in, d_out, momentum, repeat):
  keys = iter(jax.random.split(jax.random.key(0), 16))

  def normal(*shape):
    return jax.random.normal(next(keys), shape, jnp.float64)

  def column():
    return jnp.repeat(normal(SIZE, 1), repeat, axis=1)

  c = dual.Coefficients(
      weights=column(),
      momentum=column() if momentum else None,
      gradients=normal(SIZE, SIZE),
      last_weights=normal(1, 1),
      last_momentum=normal(1, 1) if momentum else None,
      last_gradients=normal(1, SIZE),
      momentum_kept=normal(1, 1) if momentum else None,
      momentum_gradients=normal(1, SIZE) if momentum else None,
  )
  weights = normal(d_in, d_out)
  s = normal(d_in, d_out) if momentum else None
  return weights, s, c, normal(SIZE, d_in), normal(SIZE, d_out)


def value_and_gradients(fn, given, extra):
  """Returns results and gradients of a function of all of them."""

  def objective(given):
    results = fn(*given, extra)
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(results)), results

  (_, results), gradients = jax.value_and_grad(objective, has_aux=True)(given)
  return results, gradients


def assert_same(actual, expected):
  jax.tree.map(
      lambda a, e: np.testing.assert_allclose(a, e, atol=1e-12),
      actual,
      expected,
  )


class DenseTest(parameterized.TestCase):

  @parameterized.product(
      sizes=[(3, 7), (7, 3)], momentum=[True, False], repeated=[True, False]
  )
  def test_read(self, sizes, momentum, repeated):
    d_in, d_out = sizes
    turned = d_in > d_out
    given = draw(d_in, d_out, momentum, min(sizes) if repeated else 1)
    x = jax.random.normal(jax.random.key(1), (SIZE, d_in), jnp.float64)

    def turn(w):
      return w.T if turned and w is not None else w

    def ours(weights, s, c, inputs, deltas, x):
      form = dense.Form(turned)
      return dense.read(form, turn(weights), turn(s), c, inputs, deltas, x)

    actual, gradients = value_and_gradients(ours, given, x)
    expected, plain = value_and_gradients(read, given, x)
    assert_same(actual, expected)

    def summed(c):  # A column that stands for its copies.
      return [
          g.sum(1, keepdims=True)
          for g in (c.weights, c.momentum)
          if g is not None
      ]

    assert_same(summed(gradients[2]), summed(plain[2]))
    blank = dict(weights=None, momentum=None)
    assert_same(
        (*gradients[:2], gradients[2]._replace(**blank), *gradients[3:]),
        (*plain[:2], plain[2]._replace(**blank), *plain[3:]),
    )

  @parameterized.product(
      sizes=[(3, 7), (7, 3)], momentum=[True, False], closes=[None, True, False]
  )
  def test_update(self, sizes, momentum, closes):
    d_in, d_out = sizes
    turned = d_in > d_out
    given = draw(d_in, d_out, momentum, 1)

    def turn(w):
      return w.T if turned and w is not None else w

    def ours(weights, s, c, inputs, deltas, closes):
      if closes is not None:
        closes = jnp.full((1, 1), closes)
      new = dense.update(
          dense.Form(turned), turn(weights), turn(s), c, inputs, deltas, closes
      )
      return tuple(map(turn, new))

    assert_same(
        value_and_gradients(ours, given, closes),
        value_and_gradients(update, given, closes),
    )


if __name__ == "__main__":
  from absl.testing import absltest

  absltest.main()
