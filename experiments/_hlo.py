# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes that a compiled program moves through main memory.

From the program's text: every operand and result that an instruction has in
main memory, tiles with their padding, loops as often as they run. A slice, or an
update in place, moves what it slices or updates. A kernel moves its operands and
results once: its blocks are fetched and written once each, which holds for the
kernels of this project, but for what rows of a batch share (a few parameters).
All branches of a conditional are counted. What the compiler keeps in VMEM is not.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Iterator, NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")
_CALL = re.compile(r"\s([a-z][a-z\d\-]*)\(")
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")

# Instructions that move nothing, or whose work is counted elsewhere.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "replica-id",
        "copy-done",
        "slice-done",
        "fusion-done",
        "async-done",
        "all-gather-done",
        "all-reduce-done",
        "collective-permute-done",
    ]
)
_SLICES = frozenset(["dynamic-slice", "slice", "gather"])
_BITS = {"pred": 8, "token": 0}


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """An instruction; results are bytes in main memory, 0 for those in VMEM."""

  name: str
  opcode: str
  shape: str
  results: tuple[int, ...]
  arguments: str
  attributes: str
  is_root: bool

  @property
  def bytes(self) -> int:
    return sum(self.results)

  @property
  def operands(self) -> list[str]:
    return _NAME.findall(self.arguments)

  def called(self, key: str) -> str:
    match = re.search(key + r"=%?([\w.\-]+)", self.attributes)
    assert match is not None, (key, self.attributes)
    return match[1]


_Computation = dict[str, _Instruction]


@dataclasses.dataclass(frozen=True)
class Moved:
  """What one instruction moves through main memory in all its executions.

  Attributes:
    name: of the instruction.
    source: the path of the function that it stems from, as JAX gives it, or,
      for what the compiler added, that of the loop around it.
    bytes: read and written.
  """

  name: str
  source: str
  bytes: int


def moved(text: str) -> Iterator[Moved]:
  """Yields what the instructions of a compiled program move.

  Args:
    text: of the program, `jax.stages.Compiled.as_text()`.

  Raises:
    ValueError: a loop's number of trips is not a constant of the text.
  """
  program = _parse(text)
  for computation, instruction, times, source in _executed(
      program, _entry(text)
  ):
    if not _is_free(instruction):
      size = _moved_by(program, computation, instruction)
      yield Moved(instruction.name, source, times * size)


@dataclasses.dataclass(frozen=True)
class Collective:
  """What one instruction sends between devices in all its executions.

  Attributes:
    kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or
      "collective-permute".
    shape: of its largest operand or result, as the compiler writes it.
    times: how often it runs.
    bytes: of that operand or result, all executions together.
    source: as in `Moved`.
  """

  kind: str
  shape: str
  times: int
  bytes: int
  source: str


_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


def collectives(text: str) -> Iterator[Collective]:
  """Yields the collectives of a compiled program, of one device.

  Args:
    text: of the program, `jax.stages.Compiled.as_text()`.
  """
  program = _parse(text)
  yield from _collectives_of(program, _executed(program, _entry(text)))


def _collectives_of(
    program: dict[str, _Computation], executed: Iterator[_Executed]
) -> Iterator[Collective]:
  for computation, instruction, times, source in executed:
    opcode = instruction.opcode.removesuffix("-start")
    if instruction.opcode in ("fusion", "fusion-start", "async-start"):
      called = instruction.called("calls")
      yield from _collectives_of(
          program, _executed(program, called, times, source)
      )
    if opcode not in _COLLECTIVES:
      continue
    # XLA joins several into one: of each its operand or result, the larger.
    operands = [computation[name].shape for name in instruction.operands]
    results = _ARRAY.findall(instruction.shape)
    if instruction.opcode.endswith("-start"):
      results = results[-len(operands) :]
    for operand, result in zip(operands, results):
      both = [*_ARRAY.findall(operand), result]
      kind, sizes, _ = max(both, key=lambda a: _bytes(a[0], a[1], None))
      size = times * _bytes(kind, sizes, None)
      yield Collective(opcode, f"{kind}[{sizes}]", times, size, source)


def _parse(text: str) -> dict[str, _Computation]:
  program: dict[str, _Computation] = {}
  current: _Computation = {}
  for line in text.splitlines():
    if (computation := _COMPUTATION.match(line)) is not None:
      current = program.setdefault(computation[1], {})
    elif (match := _INSTRUCTION.match(line)) is not None:
      instruction = _instruction(*match.groups())
      current[instruction.name] = instruction
  return program


def _instruction(root: str | None, name: str, text: str) -> _Instruction:
  call = _CALL.search(text)
  assert call is not None, text
  shape, rest = text[: call.start()], text[call.end() :]
  depth, end = 1, 0
  while depth:
    depth += {"(": 1, ")": -1}.get(rest[end], 0)
    end += 1
  return _Instruction(
      name,
      call[1],
      shape,
      tuple(_bytes(*array.groups()) for array in _ARRAY.finditer(shape)),
      rest[: end - 1],
      rest[end:],
      root is not None,
  )


def _bytes(kind: str, sizes: str, layout: str | None) -> int:
  """Returns an array's bytes in main memory."""
  order, _, tiling = (layout or "").partition(":")
  if re.search(r"S\([1-9]", tiling):
    return 0
  shape = [int(n) for n in sizes.split(",") if n]
  tile = re.search(r"T\(([\d,]+)\)", tiling)
  if tile and shape:
    # The tile is over the last dimensions as they are laid out.
    minor = [int(n) for n in order.split(",") if n]
    tiles = [int(n) for n in tile[1].split(",")]
    for axis, size in zip(minor, reversed(tiles)):
      shape[axis] = -(-shape[axis] // size) * size
  bits = _BITS.get(kind)
  if bits is None:
    number = re.search(r"\d+", kind)
    assert number is not None, kind
    bits = int(number[0])
  return math.prod(shape) * bits // 8


class _Executed(NamedTuple):
  """An instruction, among those of its computation, and how often it runs."""

  computation: _Computation
  instruction: _Instruction
  times: int
  source: str


def _executed(
    program: dict[str, _Computation], name: str, times: int = 1, loop: str = ""
) -> Iterator[_Executed]:
  """Yields a computation's instructions, and those of what it calls.

  Fusions and asynchronous computations are one instruction.
  """
  computation = program[name]
  for instruction in computation.values():
    name_of_source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    source = name_of_source[1] if name_of_source else loop
    yield _Executed(computation, instruction, times, source)
    inner = []
    if instruction.opcode == "while":
      trips = _trips(program, instruction)
      inner = [(instruction.called("body"), trips)]
    elif instruction.opcode == "call":
      inner = [(instruction.called("to_apply"), 1)]
    elif instruction.opcode == "conditional":
      inner = [(branch, 1) for branch in _branches(instruction)]
    for called, trips in inner:
      yield from _executed(program, called, times * trips, source)


def _entry(text: str) -> str:
  entry = re.search(r"^ENTRY %?([\w.\-]+) ", text, re.MULTILINE)
  assert entry is not None
  return entry[1]


def _is_free(instruction: _Instruction) -> bool:
  return (
      instruction.opcode in _FREE
      or 'custom_call_target="AllocateBuffer"' in instruction.attributes
  )


def _branches(instruction: _Instruction) -> list[str]:
  found = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
  if found:
    return _NAME.findall(found[1])
  return [
      instruction.called(f"{which}_computation") for which in ("true", "false")
  ]


def _trips(program: dict[str, _Computation], loop: _Instruction) -> int:
  """Returns how often a loop runs that counts from 0 to a constant."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  condition = program[loop.called("condition")]
  counts = {
      int(match[0])
      for i in condition.values()
      if i.opcode == "constant" and (match := re.match(r"\d+", i.arguments))
  }
  if len(counts) != 1:
    raise ValueError(
        "A loop must count up to one constant, but its condition has"
        f" {sorted(counts)}."
    )
  return counts.pop()


def _moved_by(program, computation, instruction: _Instruction) -> int:
  def size(name):
    return computation[name].bytes

  opcode, operands = instruction.opcode, instruction.operands
  if opcode == "fusion-start":  # its results begin with its operands
    opcode = "fusion"
    instruction = dataclasses.replace(
        instruction, results=instruction.results[len(operands) :]
    )
  if opcode == "fusion":
    return _moved_by_fusion(
        program[instruction.called("calls")],
        [size(name) for name in operands],
        instruction,
    )
  if opcode in _SLICES:
    # What is read is as large as the result, wherever that is.
    source = instruction.bytes if size(operands[0]) else 0
    return source + instruction.bytes
  if opcode == "dynamic-update-slice":
    return 2 * size(operands[1])
  if opcode == "copy-start":
    return size(operands[0]) + instruction.results[0]
  if opcode.endswith("-start"):
    return 2 * min(sum(map(size, operands)), instruction.bytes)
  return instruction.bytes + sum(size(name) for name in operands)


def _moved_by_fusion(
    fused: _Computation, sizes: list[int], fusion: _Instruction
) -> int:
  """Returns what a fusion reads of its operands, whose sizes are given, and
  writes."""
  users: dict[str, list[_Instruction]] = {name: [] for name in fused}
  for instruction in fused.values():
    for operand in instruction.operands:
      users[operand].append(instruction)

  def read(name: str, size: int) -> int:
    """Returns the bytes that are read of a value of some size."""
    total = 0
    for user in users[name]:
      is_source = user.operands[0] == name
      if user.opcode == "bitcast":
        total += read(user.name, size)
      elif is_source and user.opcode in _SLICES:
        total += user.bytes
      elif not (is_source and user.opcode == "dynamic-update-slice"):
        return size
    return min(total, size)

  def written(name: str, size: int) -> int:
    instruction = fused[name]
    if instruction.opcode == "bitcast":
      return written(instruction.operands[0], size)
    if instruction.opcode == "dynamic-update-slice":
      return min(size, fused[instruction.operands[1]].bytes)
    return size

  total = 0
  for instruction in fused.values():
    if instruction.opcode == "parameter":
      total += read(instruction.name, sizes[int(instruction.arguments)])
    if instruction.is_root:
      is_tuple = instruction.opcode == "tuple"
      outputs = instruction.operands if is_tuple else [instruction.name]
      total += sum(map(written, outputs, fusion.results))
  return total
