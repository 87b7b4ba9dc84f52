# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Products in a compute dtype, and their derivatives."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.memory import products

KINDS = {
    "ab": (products.matmul, (3, 4), (4, 5), lambda a, b: a @ b),
    "abT": (products.matmul_nt, (3, 4), (5, 4), lambda a, b: a @ b.T),
    "aTb": (products.matmul_tn, (4, 3), (4, 5), lambda a, b: a.T @ b),
}


class ProductsTest(parameterized.TestCase):

  @parameterized.named_parameters(*((k, *v) for k, v in KINDS.items()))
  def test_value_and_two_derivatives(self, product, a_shape, b_shape, plain):
    a = jax.random.normal(jax.random.key(0), a_shape, jnp.float64)
    b = jax.random.normal(jax.random.key(1), b_shape, jnp.float64)

    def second(f):
      """A gradient of a gradient, as in the outer loop."""
      inner = jax.grad(lambda a, b: jnp.sum(jnp.sin(f(a, b))), argnums=(0, 1))
      return jax.grad(
          lambda a, b: sum(jnp.sum(jnp.cos(x)) for x in inner(a, b)), (0, 1)
      )(a, b)

    # The dtype differs from the operands': the products with their own rule.
    exact = functools.partial(product, dtype=jnp.float32)
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    wide = functools.partial(product, dtype=jnp.float64)
    np.testing.assert_allclose(exact(a, b), plain(a, b), rtol=1e-5)
    for actual, expected in zip(second(wide), second(plain)):
      np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)

  def test_operands_are_rounded_and_sums_are_not(self):
    a, b = jnp.full((1, 512), 1 + 2**-12), jnp.ones((512, 1))
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    self.assertEqual(products.matmul(a, b, jnp.bfloat16).dtype, jnp.float32)
    self.assertEqual(products.matmul(a, b, jnp.bfloat16)[0, 0], 512)
    self.assertGreater(products.matmul(a, b)[0, 0], 512)

  def test_derivatives_multiply_in_the_compute_dtype(self):
    # JAX's own transpose would multiply a float32 cotangent.
    a, b = jnp.ones((8, 8), jnp.float32), jnp.ones((8, 8), jnp.float32)
    loss = lambda a, b: jnp.sum(products.matmul(a, b, jnp.bfloat16) ** 2)
    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(a, b))
    operands = [line for line in text.splitlines() if "dot_general" in line]
    self.assertNotEmpty(operands)
    self.assertEqual(
        text.count("preferred_element_type=float32"), len(operands)
    )
    self.assertNotRegex(text, r"dot_general\[[^]]*\] \w+:f32")
