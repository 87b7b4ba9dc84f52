# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads what the TPU compiler writes about a kernel's schedule.

A TPU core issues one bundle of instructions a cycle. With the options `dump`
libtpu writes, per kernel, a file of its final bundles, one a line, each with the
depth of its loop as a number of `>`, and a file that says how often each bundle
uses each unit.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Sequence

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(LB|LH|LE|PB|PF)?\s*:\s*(>*)(.*)")


class DumpError(RuntimeError):
  """A dump is missing, or not of the form that this compiler's version had."""


@dataclasses.dataclass(frozen=True)
class Bundle:
  """One bundle of instructions.

  Attributes:
    depth: of loops around it: 1 in the grid's loop, more in loops inside.
    begins_loop: whether it is the first of a loop's body.
    uses: of each unit.
  """

  depth: int
  begins_loop: bool
  uses: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Counts:
  """What a call executes: bundles, and uses of each unit."""

  bundles: int
  uses: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A kernel's bundles, and how often each unit can be used in one."""

  bundles: tuple[Bundle, ...]
  capacities: dict[str, int]

  def parts(self) -> tuple[list[Bundle], list[Bundle], list[list[Bundle]]]:
    """Returns the bundles outside the grid's loop, those of its own body, and
    those of each loop in it that multiplies.

    Loops that do not are copies of a program's first or last carry, where the
    compiler makes copies of them: they are left out.
    """
    outside: list[Bundle] = []
    body: list[Bundle] = []
    loops: list[list[Bundle]] = []
    for bundle in self.bundles:
      if bundle.depth == 0:
        outside.append(bundle)
      elif bundle.depth == 1:
        body.append(bundle)
      else:
        if bundle.depth == 2 and bundle.begins_loop:
          loops.append([])
        if bundle.depth > 2 or not loops:
          raise DumpError(f"The kernel has loops {bundle.depth} deep.")
        loops[-1].append(bundle)
    matrix = list(self.capacities).index("MXU")
    steps = [loop for loop in loops if any(b.uses[matrix] for b in loop)]
    return outside, body, steps

  def executed(self, iterations: int, trips: Sequence[int]) -> Counts:
    """Counts what a call executes.

    Args:
      iterations: of the grid.
      trips: of each loop in it that multiplies, in all iterations.
    """
    outside, body, loops = self.parts()
    if len(loops) != len(trips):
      raise DumpError(
          f"The kernel has {len(loops)} inner loops, expected {len(trips)}."
      )
    times = [(1, outside), (iterations, body), *zip(trips, loops)]
    return Counts(
        sum(n * len(bundles) for n, bundles in times),
        {
            name: sum(n * b.uses[unit] for n, part in times for b in part)
            for unit, name in enumerate(self.capacities)
        },
    )


def dump(folder: pathlib.Path) -> str:
  """Returns the options of libtpu (LIBTPU_INIT_ARGS) to write dumps."""
  return f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"


def read(folder: pathlib.Path, kernel: str) -> Schedule:
  """Reads the schedule of the one kernel of a name.

  Raises:
    DumpError: there is none, or more than one, or it is not understood.
  """

  def text(ending):
    paths = [
        path
        for path in folder.glob(f"*-*{kernel}*-{ending}.txt")
        if "schedule-analysis" not in path.name
    ]
    if len(paths) != 1:
      raise DumpError(
          f"The compiler wrote {len(paths)} files {kernel}*{ending}.txt,"
          " expected one."
      )
    return paths[0].read_text()

  return parse(
      text("final_bundles"), text("final_hlo-static-per-bundle-utilization")
  )


def parse(bundles: str, utilization: str) -> Schedule:
  """Returns the schedule that the two files describe."""
  lines = utilization.splitlines()
  names = [name.strip() for name in lines[1].split(",")]
  capacities = dict(zip(names, map(int, lines[2].split())))
  rows = [tuple(map(int, line.split())) for line in lines[4:] if line.strip()]
  parsed: list[Bundle] = []
  matches = [m for m in map(_BUNDLE.match, bundles.splitlines()) if m]
  if len(matches) != len(rows) or any(len(r) != len(names) for r in rows):
    raise DumpError(
        f"{len(matches)} bundles, but {len(rows)} rows of what they use."
    )
  for match, uses in zip(matches, rows):
    label, marks, rest = match.groups()
    depth = len(marks)
    if not depth and parsed and rest.strip().startswith("{}"):
      # An empty bundle behind a branch bears no marks.
      depth = parsed[-1].depth
    parsed.append(Bundle(depth, label == "LB", uses))
  return Schedule(tuple(parsed), capacities)
