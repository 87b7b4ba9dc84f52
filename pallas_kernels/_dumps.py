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
_BRANCH = re.compile(r"sbr\.rel \([^)]*\) target = \$region(\d+)")


class DumpError(RuntimeError):
  """A dump is missing, or not of the form that this compiler's version had."""


@dataclasses.dataclass(frozen=True)
class Bundle:
  """One bundle of instructions.

  Attributes:
    depth: of loops around it: 1 in the grid's loop, 2 in one over a group.
    begins_loop: whether it is the first of a loop's body.
    uses: of each unit.
    branch: the region that it jumps to, if it does.
    regions: those that start or end at it.
  """

  depth: int
  begins_loop: bool
  uses: tuple[int, ...]
  branch: int | None
  regions: frozenset[int]


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

  def loops(self, depth: int) -> int:
    """Returns how many loops there are at a depth."""
    return sum(b.begins_loop and b.depth == depth for b in self.bundles)

  def blocks(self, stores: int) -> set[int]:
    """Returns the bundles of blocks in the grid's loop that a branch skips and
    that hold so many vector stores and no matrix product: copies of a program's
    first or last carry.
    """
    store, matrix = map(list(self.capacities).index, ("VSTORE", "MXU"))
    found: set[int] = set()
    for start, bundle in enumerate(self.bundles):
      if bundle.branch is None or bundle.depth != 1:
        continue
      inside = range(start + 1, self._target(start))
      block = [self.bundles[i] for i in inside]
      if any(b.depth != 1 or b.uses[matrix] for b in block):
        continue
      if block and sum(b.uses[store] for b in block) >= stores:
        found.update(inside)
    return found

  def _target(self, start: int) -> int:
    """Returns where a branch goes to, or its own place if that is above."""
    for i in range(start + 1, len(self.bundles)):
      if self.bundles[start].branch in self.bundles[i].regions:
        return i
    return start

  def executed(
      self, trips: Sequence[int], programs: int = 1, stores: int | None = None
  ) -> Counts:
    """Counts what a call executes.

    Args:
      trips: how often bundles of depth 0, 1, ... are run.
      programs: how often a program's first and last carry are copied.
      stores: vector stores of such a copy; None: there is none.
    """
    deepest = max(b.depth for b in self.bundles)
    if deepest >= len(trips):
      raise DumpError(
          f"The kernel has loops {deepest} deep, expected {len(trips) - 1}."
      )
    once = self.blocks(stores) if stores else set()
    times = [
        programs if i in once else trips[b.depth]
        for i, b in enumerate(self.bundles)
    ]
    return Counts(
        sum(times),
        {
            name: sum(n * b.uses[unit] for n, b in zip(times, self.bundles))
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
    branch = _BRANCH.search(rest)
    parsed.append(
        Bundle(
            depth,
            label == "LB",
            uses,
            int(branch[1]) if branch else None,
            frozenset(map(int, re.findall(r"\bregion (\d+)", rest))),
        )
    )
  return Schedule(tuple(parsed), capacities)
