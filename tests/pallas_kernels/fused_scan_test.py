# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""`fused_scan` against `jax.lax.scan`, on steps that know nothing of Titans."""

import functools
import importlib
from unittest import mock

from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import tuning
from titans_jax.memory import scanning


def step(carry, x, consts):
  """A matrix, a vector and a scalar that depend on each other."""
  matrix = carry["matrix"] * consts["decay"] + x["k"].T @ x["v"]
  y = jnp.tanh(x["k"] @ matrix)
  count = carry["count"] + jnp.where(x["flag"], 1, 0)
  return (
      {"matrix": matrix, "count": count, "sum": carry["sum"] + jnp.sum(y)},
      {"y": y * consts["gain"], "mean": jnp.mean(y, keepdims=True)},
  )


def arguments(axes=(2, 3), steps=5, rows=3, dim=6, out=10, dtype=jnp.float32):
  keys = iter(jax.random.split(jax.random.key(0), 8))

  def normal(*shape):
    return jax.random.normal(next(keys), shape, dtype)

  init = {
      "matrix": normal(*axes, dim, out),
      "count": jnp.zeros(axes, jnp.int32),
      "sum": jnp.zeros(axes, dtype),
  }
  xs = {
      "k": normal(*axes, steps, rows, dim),
      "v": normal(*axes, steps, rows, out),
      "flag": jax.random.bernoulli(next(keys), 0.5, (*axes, steps)),
  }
  shared = (1, *axes[1:])
  consts = {"decay": 0.9 * jnp.ones(axes, dtype), "gain": normal(*shared, out)}
  return init, xs, consts


def floats(tree):
  return [x for x in jax.tree.leaves(tree) if x.dtype == jnp.float32]


def with_floats(tree, new):
  new = iter(new)
  return jax.tree.map(
      lambda x: next(new) if x.dtype == jnp.float32 else x, tree
  )


def run(scan, given):
  """Returns results, and gradients of a function of all of them."""

  def objective(values):
    results = scan(step, *with_floats(given, values))
    return sum(jnp.sum(jnp.sin(x)) for x in floats(results)), results

  grad = jax.jit(jax.grad(objective, has_aux=True))
  return grad(floats(given))


def assert_same(actual, expected, tolerance=1e-5):
  jax.tree.map(
      lambda a, e: np.testing.assert_allclose(
          a, e, rtol=tolerance, atol=tolerance * max(1, np.abs(e).max())
      ),
      actual,
      expected,
  )


class FusedScanTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=2, deadline=None)
  # Iterations of the forward kernel: two, the second short; three, and no even
  # number divides the steps.
  @hypothesis.example(steps=10, group=None, rows=3, dim=4)
  @hypothesis.example(steps=17, group=3, rows=3, dim=4)
  @hypothesis.given(
      steps=st.integers(1, 20),
      group=st.none() | st.integers(1, 8),
      rows=st.integers(1, 9),
      dim=st.integers(1, 12),
  )
  def test_equals_lax_scan(self, steps, group, rows, dim):
    given = arguments(steps=steps, rows=rows, dim=dim)
    expected = run(scanning.lax_scan, given)
    fused = functools.partial(pallas_kernels.fused_scan, group=group)
    assert_same(run(fused, given), expected)

  @parameterized.parameters(((1, 1),), ((2, 1),), ((2, 3),))
  def test_tiles_do_not_change_results(self, tile):
    # Given a tile, which interpreters leave aside unless told to interpret
    given = arguments(steps=3)
    expected = scanning.lax_scan(step, *given)
    actual = pallas_kernels.fused_scan(step, *given, tile=tile, interpret=True)
    assert_same(actual, expected)

  def test_one_parallel_axis_and_no_consts(self):
    init = {"s": jnp.zeros((4, 8, 128), jnp.float32)}
    xs = {
        "x": jax.random.normal(jax.random.key(0), (4, 3, 8, 128), jnp.float32)
    }

    def add(carry, x, consts):
      del consts
      total = carry["s"] + x["x"]
      return {"s": total}, total

    last, ys = pallas_kernels.fused_scan(add, init, xs, parallel_axes=1)
    np.testing.assert_allclose(ys, jnp.cumsum(xs["x"], 1), rtol=1e-6)
    np.testing.assert_allclose(last["s"], ys[:, -1], rtol=1e-6)

  @parameterized.parameters((1, 2), (4, 5))
  def test_a_carry_outlives_the_iterations(self, most, group):
    self.check_a_carry_outlives_the_iterations(most, group)

  @parameterized.parameters((2, 4), (3, 3))
  @pytest.mark.exhaustive
  def test_a_carry_outlives_the_iterations_too(self, most, group):
    self.check_a_carry_outlives_the_iterations(most, group)

  def check_a_carry_outlives_the_iterations(self, most, group):
    given = arguments(axes=(1, 1), steps=11)
    expected = run(scanning.lax_scan, given)
    fused = functools.partial(pallas_kernels.fused_scan, group=group)
    with mock.patch.object(tuning, "MOST_STEPS", most):
      assert_same(run(fused, given), expected)

  def test_results_that_are_constants(self):
    def constant(carry, x, consts):
      del x, consts
      return {"n": jnp.float32(0), "w": carry["w"]}, (1.0, jnp.ones(3))

    init = {"n": jnp.ones((1, 1)), "w": jnp.ones((1, 1, 2, 2))}
    xs = {"unused": jnp.ones((1, 1, 3))}
    (last, ys), (_, expected) = (
        scan(constant, *jax.tree.map(jnp.float32, (init, xs)), {})
        for scan in (pallas_kernels.fused_scan, scanning.lax_scan)
    )
    jax.tree.map(np.testing.assert_array_equal, ys, expected)
    self.assertEqual(last["n"], 0)

    def total(xs):
      last, _ = pallas_kernels.fused_scan(constant, init, xs, {})
      return jnp.sum(last["w"])

    init = jax.tree.map(jnp.float32, init)
    d_xs = jax.grad(total)(jax.tree.map(jnp.float32, xs))
    np.testing.assert_array_equal(d_xs["unused"], 0)

  @parameterized.parameters(0, 1)
  def test_no_races_and_nothing_read_before_it_is_written(self, seed):
    self.enter_context(mock.patch.object(tuning, "MOST_STEPS", 2 + 2 * seed))
    given = arguments(axes=(1, 2), steps=5)
    params = pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", random_seed=seed
    )
    fused = functools.partial(
        pallas_kernels.fused_scan, group=2, interpret=params
    )
    assert_same(run(fused, given), run(scanning.lax_scan, given))


class BadInputTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.given = arguments()

  def call(self, step_fn=step, **changes):
    init, xs, consts = self.given
    given = {"init": init, "xs": xs, "consts": consts} | changes
    options = {k: given.pop(k) for k in ("group", "tile") if k in given}
    return jax.eval_shape(
        functools.partial(pallas_kernels.fused_scan, step_fn, **options),
        *given.values(),
    )

  def test_leaves_that_do_not_fit(self):
    xs = self.given[1] | {"v": jnp.zeros((2, 3, 4, 3, 10))}
    with self.assertRaisesRegex(ValueError, r"\(2, 3, 4\)"):
      self.call(xs=xs)
    init = self.given[0] | {"sum": jnp.zeros((2, 4))}
    with self.assertRaisesRegex(ValueError, r"init must start with \(2, 3\)"):
      self.call(init=init)
    consts = self.given[2] | {"gain": jnp.zeros((2, 2, 10))}
    with self.assertRaisesRegex(ValueError, "consts must start with"):
      self.call(consts=consts)

  def test_a_step_that_changes_its_carry(self):
    def change(carry, x, consts):
      carry, y = step(carry, x, consts)
      return carry | {"sum": carry["count"]}, y

    with self.assertRaisesRegex(ValueError, "must not change its carry"):
      self.call(change)

  def test_a_step_that_closes_over_an_array(self):
    captured = jnp.arange(10, dtype=jnp.float32)

    def close(carry, x, consts):
      carry, y = step(carry, x, consts)
      return carry, y | {"y": y["y"] + captured}

    with self.assertRaisesRegex(
        ValueError, r"float32\[10\]: pass it in consts"
    ):
      self.call(close)

  def test_an_operation_that_a_tpu_kernel_lacks(self):
    # SparseCore has a sort, and its rules must not count for the TensorCore
    importlib.import_module("jax.experimental.pallas.tpu_sc")

    def sort(carry, x, consts):
      carry, y = step(carry, x, consts)
      return carry, y | {"y": jnp.sort(y["y"], axis=-1)}

    with self.assertRaisesRegex(
        ValueError, "sort, which Mosaic does not lower"
    ):
      self.call(sort)

  def test_float64(self):
    self.given = arguments(dtype=jnp.float64)
    with self.assertRaisesRegex(ValueError, "no float64 on TPU"):
      self.call()

  def test_a_carry_larger_than_vmem(self):
    large = arguments(axes=(1, 1), dim=4096, out=4096, steps=1)
    with self.assertRaisesRegex(
        ValueError, r"a carry of \d+ bytes.*bytes of VMEM"
    ):
      self.given = large
      self.call()

  def test_cuts_that_do_not_fit(self):
    with self.assertRaisesRegex(
        ValueError, r"tile must hold a divisor.*\(2, 2\)"
    ):
      self.call(tile=(2, 2))
    with self.assertRaisesRegex(ValueError, "group must be at least 1, got 0"):
      self.call(group=0)

  def test_no_kernel_for_other_devices(self):
    lower = (
        jax.jit(functools.partial(pallas_kernels.fused_scan, step))
        .trace(*self.given)
        .lower
    )
    with self.assertRaisesRegex(Exception, "cuda"):
      lower(lowering_platforms=("cuda",))


if __name__ == "__main__":
  from absl.testing import absltest

  absltest.main()
