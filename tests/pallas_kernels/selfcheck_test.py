# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The check of the kernel: what it says, and that it finds what is wrong."""

import contextlib
import dataclasses
import io
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import _problems
from pallas_kernels import selfcheck
from tests.experiments import processes

PROBLEM = _problems.Problem(
    head_dim=4,
    chunk=4,
    depth=1,
    hidden=4,
    batch=1,
    heads=1,
    length=4,
    momentum=False,
    packed=True,
)
XLA = _problems.implementation("xla")


def command(*args):
  return processes.run_module("pallas_kernels.selfcheck", *args)


def check(kernel):
  """Checks a function in the kernel's place; returns status and output."""
  output = io.StringIO()
  scans = {"pallas": kernel, "xla": XLA}
  with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
    status = selfcheck.run({"tiny": PROBLEM}, scans, ["float32"])
  return status, output.getvalue()


def wrong_outputs(problem, inputs):
  results = XLA(problem, inputs)
  return results._replace(outputs=results.outputs + 1e-2)


def wrong_gradient(problem, inputs):
  return XLA(problem, inputs._replace(keys=jax.lax.stop_gradient(inputs.keys)))


def no_number(problem, inputs):
  results = XLA(problem, inputs)
  return results._replace(outputs=results.outputs.at[0, 0].set(jnp.nan))


def no_program(problem, inputs):
  raise NotImplementedError("no such operation on this machine")


@pytest.mark.slow
class SelfcheckTest(parameterized.TestCase):

  def test_command_checks_the_kernel(self):
    process = command("--cases=d48_b16_l1", "--dtypes=float32")
    self.assertEqual(process.returncode, 0, process.stderr)
    first, *lines = process.stdout.splitlines()
    for name in (jax.__version__, "jaxlib", "libtpu", "cpu"):
      self.assertIn(name, first)
    lines = [line for line in lines if line.startswith("d48_b16_l1")]
    self.assertLen(lines, 2)
    for line, names in zip(lines, ("pallas-xla", "pallas-reference")):
      self.assertIn(names, line)
      self.assertEndsWith(line, "ok")
    self.assertEndsWith(process.stdout, "All ok.\n")

  @parameterized.parameters(
      ("--cases=d48", "--cases: 'd48' is none of d48_b16_l1, "),
      ("--cases=", "--cases names none of d48_b16_l1, "),
      ("--dtypes=half", "--dtypes: 'half' is none of float32, bfloat16."),
      ("--quick=maybe", "--quick"),
  )
  def test_flags_are_checked(self, flag, message):
    processes.assert_refused(self, command(flag), message)

  def test_what_is_right_passes(self):
    status, output = check(XLA)
    self.assertEqual(status, 0, output)
    self.assertIn("All ok.", output)

  @parameterized.parameters((1.5, 0), (3.0, 1))
  def test_a_kernel_that_rounds_more_is_measured_from_what_is_exact(
      self, times, expected
  ):
    def kernel(problem, inputs):
      exact = XLA(dataclasses.replace(problem, dtype="float32"), inputs)
      off = lambda x, y: y + times * (x - y)
      return jax.tree.map(off, XLA(problem, inputs), exact)

    output = io.StringIO()
    with (
        mock.patch.object(selfcheck, "_rounds_more", lambda d: d != "float32"),
        contextlib.redirect_stdout(output),
    ):
      status = selfcheck.run(
          # Of an array of a few numbers one would not tell 1.5 from 2.
          {"tiny": dataclasses.replace(PROBLEM, heads=4, length=32)},
          {"pallas": kernel, "xla": XLA},
          ["bfloat16"],
      )
    self.assertIn("pallas-xla float32", output.getvalue())
    self.assertEqual(status, expected, output.getvalue())

  @parameterized.parameters(
      (wrong_outputs, "FAILED: .outputs"),
      (wrong_gradient, "FAILED: gradient of .keys"),
      (no_number, "FAILED: .outputs"),
      (no_program, "no such operation on this machine"),
  )
  def test_what_is_wrong_fails(self, kernel, message):
    status, output = check(kernel)
    self.assertEqual(status, 1, output)
    self.assertIn(message, output)
    self.assertIn("1 of 1 comparisons failed.", output)

  @parameterized.parameters(
      ({"a": 0.05, "b": 0.01}, [0.1, 0.002], "b"),
      ({"a": 0.05, "b": 0.01}, [0.1, 0.1], "a"),
      ({"a": 0.05, "b": math.nan}, [0.01, 0.1], "b"),
      ({"a": 0.05, "b": 1e-9}, [0.01, 0.0], "b"),
  )
  def test_an_array_does_not_hide_another(self, found, bounds, name):
    worst = selfcheck.worst(found, bounds)
    self.assertEqual(worst.name, name)
    self.assertEqual(worst.ok, name == "a")

  def test_errors_are_relative_to_each_array(self):
    expected = {"large": np.array([100.0, 0]), "small": np.array([3e-3, 4e-3])}
    actual = {"large": np.array([100.0, 2]), "small": np.array([3e-3, 5e-3])}
    for measure, small in (
        (selfcheck.by_largest, 0.25),
        (selfcheck.by_norm, 0.2),
    ):
      found = selfcheck.errors(actual, expected, measure)
      self.assertAlmostEqual(found["['large']"], 0.02)
      self.assertAlmostEqual(found["['small']"], small)

  def test_other_arrays_are_refused(self):
    with self.assertRaisesRegex(ValueError, "expected"):
      selfcheck.errors(
          [np.ones(2)], [np.ones(2), np.ones(2)], selfcheck.by_norm
      )
    with self.assertRaisesRegex(ValueError, "shape"):
      selfcheck.errors([np.ones(1)], [np.ones(2)], selfcheck.by_norm)


if __name__ == "__main__":
  absltest.main()
