# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Orders of a program's operations: complete, possible, and overlapping."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from pallas_kernels import lockstep
from pallas_kernels import program as program_lib


def chain(x, y):
  """Products that wait for row functions, and one that waits for nothing."""
  early = jnp.tanh(x @ y)
  late = early / jnp.sum(early, axis=1, keepdims=True)
  return late @ y.T, y.T @ x.T


def make_program():
  x = jax.ShapeDtypeStruct((128, 128), jnp.float32)
  return program_lib.Program(chain, x, x)


class OrderTest(parameterized.TestCase):

  @parameterized.parameters(lockstep.in_turn, lockstep.scheduled)
  def test_every_operation_once_and_after_what_it_needs(self, order):
    program = make_program()
    known = [set(range(program.inputs)) for _ in range(3)]
    seen = []
    for i, operation in order(program, 3):
      self.assertContainsSubset(operation.slots, known[i])
      known[i].update(operation.outputs)
      seen.append((i, id(operation)))
    self.assertCountEqual(
        seen, [(i, id(op)) for i in range(3) for op in program.operations]
    )

  def test_in_turn_interleaves_instances(self):
    order = [i for i, _ in lockstep.in_turn(make_program(), 2)]
    self.assertEqual(order[:4], [0, 1, 0, 1])

  def test_scheduled_fills_the_wait_for_row_functions(self):
    program = make_program()
    names = [op.name for _, op in lockstep.scheduled(program, 1)]
    # What needs nothing is not left for the end, where the chain waits.
    self.assertEqual(names[-1], "dot_general")
    products = [n for n, name in enumerate(names) if name == "dot_general"]
    self.assertLess(products[1], names.index("div"))


if __name__ == "__main__":
  absltest.main()
