# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks the kernel on the device that is there, against what it stands for.

    python -m pallas_kernels.selfcheck [--quick] [--cases=d64_b16_l2]

For a new machine, or new versions. On TPU the kernel runs compiled, on CPU
interpreted. It is compared with `jax.lax.scan` and, in float32 and on small
sizes, with the token-by-token reference. On Hopper GPUs the kernel of their own
runs where it can, in bfloat16; for the rest of the cases there, and for other
devices, there is no kernel: `jax.lax.scan` is compared with the reference.

Compared are outputs, weights and momentum behind the last token ("forward"),
and gradients with respect to queries, keys, values, gates, initial weights and
slow parameters ("backward"). The error of an array is its largest difference,
relative to its largest value. Shown is the array whose error is most of its bound.
The bounds:

  * float32: on CPU 2e-5, ten times the largest seen in these cases; 1e-3 on
    devices whose tanh and square roots are approximations of their own. Products
    in bfloat16 by mistake would be ten times that.
  * bfloat16 products: both sides round the same operands, but those differ in
    the last bits of float32 and so now and then fall to the other side. The
    bound is what rounding costs as a whole: how far `jax.lax.scan` in bfloat16
    is from itself in float32, in the same case, and never more than 0.1. The
    kernel for GPUs rounds once more here and there. It is compared with
    `jax.lax.scan` in float32, and may be twice as far from that as `jax.lax.scan`
    in bfloat16 is. There each array of the results has its own bound, which
    another's error does not widen (gradients share one: states kept for them are
    rounded, which those by gates feel most); and errors are norms of differences
    relative to norms, since how far the worst number of many is off says little
    about rounding.

The exit status is 1 if anything failed.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import traceback
from typing import Iterator, Mapping, NamedTuple, Sequence

from absl import app
from absl import flags
import jax
import numpy as np

from pallas_kernels import _problems
from pallas_kernels import command_line
from titans_jax.memory import hopper

_DTYPES = ("float32", "bfloat16")
_MOST_ROUNDING = 0.1


def _case(head_dim: int, chunk: int, depth: int, **options):
  """Returns a small case, whose last chunk stays open."""
  sizes = {"hidden": 2 * head_dim, "batch": 1, "heads": 2}
  sizes["length"] = 2 * chunk + chunk // 2
  problem = _problems.Problem(
      head_dim, chunk, depth, **sizes | options  # type: ignore[arg-type]
  )
  return f"d{head_dim}_b{chunk}_l{depth}", problem


_QUICK = dict([_case(48, 16, 1, mask=True)])
_SMALL = _QUICK | dict(
    [
        _case(64, 16, 2, mask=True),
        _case(64, 16, 3),
        _case(64, 64, 2, momentum=False),
        _case(48, 64, 2, mask=True),
        _case(128, 16, 1),
        _case(128, 64, 2),
    ]
)


def _large(head_dim: int, chunk: int):
  """Returns a case of several programs of several instances, of several groups of
  several chunks."""
  problem = _problems.Problem(
      head_dim,
      chunk,
      depth=2,
      hidden=4 * head_dim,
      batch=4,
      heads=4,
      length=20 * chunk,
      packed=True,
  )
  return f"d{head_dim}_b{chunk}_l2_large", problem


_LARGE = dict([_large(48, 16), _large(64, 16), _large(64, 64)])
_LARGE["d64_b16_l2_documents"] = dataclasses.replace(
    _LARGE["d64_b16_l2_large"], documents=True
)
# Of some tokens the first layer's gradient is below the bound.
_LARGE["d48_b16_l2_bounded"] = dataclasses.replace(
    _LARGE["d48_b16_l2_large"], max_grad_norm=18.0
)
# On GPUs split over a cluster of blocks.
_LARGE |= dict([_large(96, 16), _large(128, 64)])
_CASES = _SMALL | _LARGE

_QUICK_ONLY = flags.DEFINE_bool("quick", False, "Runs the smallest case only.")
_NAMES = flags.DEFINE_list(
    "cases",
    None,
    f"Which to run, of {', '.join(_CASES)}: head dimension, chunk size, layers."
    " Default: all on TPU, the small ones on CPU, on GPU also those that there"
    " is a kernel for.",
)
_DTYPE_NAMES = flags.DEFINE_list("dtypes", list(_DTYPES), "Of the products.")


def main(argv) -> None:
  command_line.start(argv)
  with command_line.clean_errors():
    command_line.check_names("dtypes", _DTYPE_NAMES.value, _DTYPES)
    if _NAMES.value is not None:
      command_line.check_names("cases", _NAMES.value, tuple(_CASES))
      if _QUICK_ONLY.value:
        raise ValueError("--quick and --cases each choose: give one of them.")
    device = command_line.device()
    cases, names = _choose(device.platform)
  print(command_line.describe(device))
  print(
      {
          "tpu": "The kernel, compiled.",
          "cpu": "The kernel, interpreted.",
          "gpu": "The kernel for Hopper, compiled, in bfloat16 where it can run;"
          " jax.lax.scan against the reference.",
      }.get(
          device.platform,
          f"There is no kernel for {device.platform} yet: jax.lax.scan against"
          " the reference alone.",
      ),
      flush=True,
  )
  scans = {name: _problems.implementation(name) for name in names}
  sys.exit(run(cases, scans, _DTYPE_NAMES.value))


def _choose(platform: str):
  """Returns the cases, and the implementations to compare."""
  names = ["xla", "reference"]
  if platform in ("tpu", "cpu", "gpu"):
    names.insert(0, "pallas")
  elif "float32" not in _DTYPE_NAMES.value:
    raise ValueError(
        f"--dtypes={','.join(_DTYPE_NAMES.value)}: without a kernel for"
        f" {platform} only float32 can be checked, against the reference."
    )
  if _NAMES.value is not None:
    cases = {name: _CASES[name] for name in _NAMES.value}
  elif _QUICK_ONLY.value:
    cases = _QUICK
  else:
    cases = _CASES if platform == "tpu" else _SMALL
    if platform == "gpu":
      cases = cases | {k: p for k, p in _LARGE.items() if _on_gpu(p)}
  if "pallas" not in names:
    for name in cases:
      if name in _LARGE:
        raise ValueError(
            f"--cases={name} is too large for the reference, and there is no"
            f" kernel for {platform}: choose of {', '.join(_SMALL)}."
        )
  return cases, names


def _on_gpu(problem: _problems.Problem) -> bool:
  rounded = dataclasses.replace(problem, dtype="bfloat16")
  return rounded.why_not_gpu() is None


class Error(NamedTuple):
  """How far an array is off, and may be."""

  value: float
  bound: float
  name: str

  @property
  def ok(self) -> bool:
    # A NaN is no less than its bound.
    return self.value <= self.bound

  @property
  def share(self) -> float:
    """Of its bound, infinite for a NaN."""
    if math.isnan(self.value):
      return math.inf
    if not self.bound:
      return math.inf if self.value else 0.0
    return self.value / self.bound


class Comparison(NamedTuple):
  """One implementation against another, forward and backward: the arrays that are
  furthest off, by their bounds."""

  names: str
  forward: Error
  backward: Error

  @property
  def ok(self) -> bool:
    return self.forward.ok and self.backward.ok


def run(
    cases: Mapping[str, _problems.Problem],
    scans: Mapping[str, _problems.Scan],
    dtypes: Sequence[str] = _DTYPES,
) -> int:
  """Prints a line per comparison.

  Args:
    cases: by name.
    scans: "xla", and "pallas" where there is a kernel, and "reference".
    dtypes: of the products.

  Returns:
    The exit status: 1 if anything failed.
  """
  kind = jax.devices()[0].device_kind
  count = failed = 0
  for name, problem in cases.items():
    programs = _Programs(problem, scans)
    for dtype in dtypes:
      start = time.perf_counter()
      line = f"{name:<21}{kind}  {dtype:<10}"
      try:
        for comparison in _compare(programs, dtype, name in _LARGE):
          seconds, start = time.perf_counter() - start, time.perf_counter()
          count += 1
          failed += not comparison.ok
          print(f"{line}{_format(comparison, seconds)}", flush=True)
      except Exception:  # pylint: disable=broad-exception-caught
        # Whatever a new machine's compiler says of one case, others follow.
        count += 1
        failed += 1
        traceback.print_exc()
        print(f"{line}FAILED, with the error above", flush=True)
  print(f"{failed} of {count} comparisons failed." if failed else "All ok.")
  return 1 if failed else 0


def _format(comparison: Comparison, seconds: float) -> str:
  forward, backward = comparison.forward, comparison.backward
  worst = max(forward, backward, key=lambda error: error.share)
  verdict = "ok" if comparison.ok else f"FAILED: {worst.name}"
  return (
      f"{comparison.names:<19}forward {forward.value:.1e} (bound"
      f" {forward.bound:.1e})  backward {backward.value:.1e} (bound"
      f" {backward.bound:.1e})  {seconds:5.1f} s  {verdict}"
  )


class _Programs:
  """The results of one case, each computed once."""

  def __init__(self, problem, scans):
    self.scans = scans
    self._problem = problem
    self._inputs = problem.inputs()
    self._cotangents = _problems.cotangents(problem, self._inputs)
    self._known = {}

  def has_kernel(self, dtype: str) -> bool:
    if "pallas" not in self.scans or jax.default_backend() != "gpu":
      return "pallas" in self.scans
    problem = dataclasses.replace(self._problem, dtype=dtype)
    return problem.why_not_gpu() is None

  def backward(self, name: str, dtype: str):
    """Returns results and gradients."""
    if (name, dtype) not in self._known:
      problem = dataclasses.replace(self._problem, dtype=dtype)
      run = _problems.backward(self.scans[name], problem)
      self._known[name, dtype] = jax.device_get(
          run(self._inputs, self._cotangents)
      )
    return self._known[name, dtype]

  def forward(self, name: str, dtype: str):
    """Returns the results of the program that has no backward pass."""
    problem = dataclasses.replace(self._problem, dtype=dtype)
    run = _problems.forward(self.scans[name], problem)
    return jax.device_get(run(self._inputs))


def _compare(
    programs: _Programs, dtype: str, large: bool
) -> Iterator[Comparison]:
  """Yields the comparisons of a case in one dtype."""
  name = "pallas" if programs.has_kernel(dtype) else "xla"
  others = [o for o in programs.scans if o not in ("pallas", name)]
  if dtype != "float32" or large:
    others = [other for other in others if other != "reference"]
  if not others:
    return
  alone = programs.forward(name, dtype)
  together, gradients = programs.backward(name, dtype)
  # Without a kernel there is nobody to compare bfloat16 with.
  against = "float32" if _rounds_more(dtype) else dtype
  measure = by_norm if _rounds_more(dtype) else by_largest
  bounds = _bounds(programs, dtype)
  for other in others:
    results, expected = programs.backward(other, against)
    forward = [errors(r, results, measure) for r in (alone, together)]
    backward = {
        f"gradient of {array}": error
        for array, error in errors(gradients, expected, measure).items()
    }
    yield Comparison(
        f"{name}-{other}" + (f" {against}" if against != dtype else ""),
        max((worst(e, bounds[0]) for e in forward), key=lambda e: e.share),
        worst(backward, bounds[1]),
    )


def _rounds_more(dtype: str) -> bool:
  return dtype != "float32" and jax.default_backend() == "gpu"


def _bounds(programs: _Programs, dtype: str) -> tuple[list[float], list[float]]:
  """Returns the bounds of all arrays, of results and of gradients."""
  rounded = programs.backward("xla", dtype)
  exact = programs.backward("xla", "float32")

  def of(actual, expected, apart):
    if dtype == "float32":
      bound = 2e-5 if jax.default_backend() == "cpu" else 1e-3
      return [bound] * len(jax.tree.leaves(expected))
    if _rounds_more(dtype):
      found = rounding_bounds(actual, expected, apart)
    else:
      each = list(errors(actual, expected, by_largest).values())
      found = [np.max(each)] * len(each)
    # A NaN stays one, which nothing is below.
    return [float(np.minimum(_MOST_ROUNDING, bound)) for bound in found]

  return of(rounded[0], exact[0], True), of(rounded[1], exact[1], False)


def rounding_bounds(rounded, exact, apart: bool) -> list[float]:
  """Returns how far, by norms, the kernel for GPUs may be from what is exact.

  Args:
    rounded: arrays by `jax.lax.scan` with products in bfloat16.
    exact: likewise in float32.
    apart: whether each array has a bound of its own.
  """
  each = hopper.ROUNDING * np.array([*errors(rounded, exact, by_norm).values()])
  return list(each if apart else np.full_like(each, np.max(each)))


def worst(found: Mapping[str, float], bounds: Sequence[float]) -> Error:
  """Returns the error that is most of its bound."""
  of_arrays = [
      Error(value, bound, name)
      for (name, value), bound in zip(found.items(), bounds, strict=True)
  ]
  return max(of_arrays, key=lambda error: error.share)


def by_largest(difference: np.ndarray, expected: np.ndarray) -> float:
  """Returns the largest difference, relative to the largest value."""
  return _relative(np.max(np.abs(difference)), np.max(np.abs(expected)))


def by_norm(difference: np.ndarray, expected: np.ndarray) -> float:
  """Returns the norm of the difference, relative to the norm."""
  return _relative(np.linalg.norm(difference), np.linalg.norm(expected))


def _relative(error, scale) -> float:
  return float(error / scale) if scale else math.inf if error else 0.0


def errors(actual, expected, measure) -> dict[str, float]:
  """Returns the errors of all arrays by name.

  Args:
    actual: arrays.
    expected: likewise.
    measure: (difference, expected), float64 arrays -> error.
  """
  structures = jax.tree.structure(actual), jax.tree.structure(expected)
  if structures[0] != structures[1]:  # type: ignore[operator]
    raise ValueError(f"Arrays {structures[0]}, expected {structures[1]}.")
  named = jax.tree_util.tree_leaves_with_path(expected)
  found = {}
  for a, (path, e) in zip(jax.tree.leaves(actual), named):
    a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
    if a.shape != e.shape:
      raise ValueError(f"An array of shape {a.shape}, expected {e.shape}.")
    found[jax.tree_util.keystr(path)] = measure(a - e, e)
  return found


if __name__ == "__main__":
  app.run(main)
