# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A step's operations, made fit, mean what the step meant."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import lockstep
from pallas_kernels import program as program_lib
from titans_jax.memory import products


def f32(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def draw(seed, *avals):
  rng = np.random.default_rng(seed)
  return tuple(jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in avals)


def names(program):
  return collections.Counter(op.name for op in program.operations)


def twice_the_same(x, y):
  return jnp.tanh(x @ y) + jnp.tanh(x @ y), jnp.sin(x)


def unused(x, y):
  jnp.exp(x @ y)
  return x + 1.0


def sum_over_rows(x, y, z):
  """A sum of three products over rows, one term of another kind."""
  return (
      products.matmul_tn(x, y)
      + (products.matmul_tn(y, z) + jnp.tanh(x.T @ x)[:, :1])
      + products.matmul_tn(z, x)
  )


def shared_left(x, y, z):
  return x @ y, jnp.tanh(x @ z)


def chained_left(x, y, z):
  """The second product needs the first: they cannot be one."""
  first = x @ y
  return first, x @ (z + first[:1])


def entangled(a, b, c, d):
  """Two pairs that could each be one product, but not both."""
  first = a @ b
  second = c @ d
  return first, second, c @ jnp.sin(first), a @ jnp.sin(second)


def two_axes(a, b, c):
  return jnp.einsum("ij,ij->", a, b), jnp.einsum("ij,ij->i", a, c)


def constants(x):
  return 1.0, jnp.zeros(3), x, x


class ProgramTest(parameterized.TestCase):

  @parameterized.parameters(
      (twice_the_same, ((8, 16), (16, 8))),
      (unused, ((8, 16), (16, 8))),
      (sum_over_rows, ((24, 16),) * 3),
      (shared_left, ((8, 16), (16, 64), (16, 32))),
      (chained_left, ((8, 16), (16, 8), (16, 8))),
      (entangled, ((16, 16),) * 4),
      (two_axes, ((8, 16),) * 3),
      (constants, ((8, 16),)),
  )
  def test_means_what_the_function_meant(self, fn, shapes):
    avals = [f32(*shape) for shape in shapes]
    for side_by_side in (False, True):
      program = program_lib.Program(fn, *avals, side_by_side=side_by_side)
      for order in (lockstep.in_turn, lockstep.scheduled):
        instances = [draw(seed, *avals) for seed in range(3)]
        results = lockstep.run(program, order, instances)
        for arguments, result in zip(instances, results):
          jax.tree.map(
              lambda a, e: np.testing.assert_allclose(a, e, atol=2e-5),
              result,
              fn(*arguments),
          )

  def test_computes_nothing_twice_and_nothing_unused(self):
    avals = f32(8, 16), f32(16, 8)
    counts = names(program_lib.Program(twice_the_same, *avals))
    self.assertEqual((counts["dot_general"], counts["tanh"]), (1, 1))
    counts = names(program_lib.Program(unused, *avals))
    self.assertEqual(set(counts), {"add"})

  def test_inlines_calls(self):
    fn = jax.checkpoint(jax.jit(jax.nn.silu))
    program = program_lib.Program(fn, f32(8, 8))
    self.assertContainsSubset(["logistic", "mul"], names(program))
    self.assertNoCommonElements(["jit", "pjit", "remat2"], names(program))

  def test_sums_over_few_rows_become_one_product(self):
    program = program_lib.Program(sum_over_rows, *[f32(24, 16)] * 3)
    # The fourth is x^T x, which is not a term of the sum itself.
    self.assertCountEqual(program.products(), [(16, 72, 16), (16, 24, 16)])

  def test_sums_that_fill_their_tiles_stay(self):
    program = program_lib.Program(sum_over_rows, *[f32(128, 16)] * 3)
    self.assertLen(program.products(), 4)

  def test_products_side_by_side_share_their_tiles(self):
    avals = f32(8, 16), f32(16, 64), f32(16, 32)
    program = program_lib.Program(shared_left, *avals, side_by_side=True)
    self.assertEqual(program.products(), [(8, 16, 96)])
    program = program_lib.Program(shared_left, *avals)
    self.assertLen(program.products(), 2)

  def test_products_that_need_each_other_stay(self):
    avals = f32(8, 16), f32(16, 8), f32(16, 8)
    program = program_lib.Program(chained_left, *avals, side_by_side=True)
    self.assertLen(program.products(), 2)

  def test_products_of_other_types_stay(self):
    def mixed(a, b, c):
      wide = jnp.dot(a, b, preferred_element_type=jnp.float32)
      return wide, jnp.dot(a, c)

    avals = [jax.ShapeDtypeStruct((16, 16), jnp.bfloat16)] * 3
    program = program_lib.Program(mixed, *avals, side_by_side=True)
    self.assertLen(program.products(), 2)

  def test_refuses_effects(self):
    def printing(x):
      jax.debug.print("{}", x[0, 0])
      return x

    with self.assertRaisesRegex(ValueError, "must be pure, but debug"):
      program_lib.Program(printing, f32(8, 8))

  def test_counts_operations(self):
    program = program_lib.Program(twice_the_same, f32(8, 16), f32(16, 8))
    self.assertEqual(program.flops(), 2 * 8 * 16 * 8)
    self.assertEqual(program.transcendentals(), 8 * 8)

  def test_refuses_arrays_that_the_step_closes_over(self):
    table = jnp.arange(8.0)
    with self.assertRaisesRegex(ValueError, r"closes over an array.*\[8\]"):
      program_lib.Program(lambda x: x + table, f32(8, 8))


if __name__ == "__main__":
  absltest.main()
