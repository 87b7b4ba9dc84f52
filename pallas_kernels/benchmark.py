# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Times the memory's implementations against each other, in one run.

    python -m pallas_kernels.benchmark [--implementations=xla,pallas] \
        [--head_dim=128 --hidden=512 --chunk=64 --heads=8 --batch=4] [--json]

Measured is `memory.scan` of a two-layer memory with momentum, on whole
sequences of random tokens: "forward" the call alone; "backward" the program
that returns outputs, final state and all gradients, so forward pass and
backward pass together. A measurement is as many calls as fill a tenth of a
second, waited for at their end; the implementations take turns, and the median
over the rounds is reported. The first call, which compiles, is reported apart.

Model FLOPs: 2 per multiply-add, 11 D hidden + 2 b (D + hidden) multiply-adds a
token and head forward (keys 2, delta 1, queries on W and S 4, updates of W and
S 4, and the chunk's own products); the backward pass three times that, since it
computes the forward pass again. The share of the peak is theirs, of the bfloat16
peak that the chip's maker states, whatever --dtype is.

On CPU the kernel is interpreted, which says nothing about its speed: it is timed
there only if --implementations names it, and labelled.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time

from absl import app
from absl import flags
import jax

from pallas_kernels import _problems
from pallas_kernels import _work
from pallas_kernels import command_line
from pallas_kernels import tuning

_IMPLEMENTATIONS = ("xla", "pallas")
_DIRECTIONS = ("forward", "backward")

# bfloat16 FLOP/s of a chip, of Google Cloud's pages on TPU versions. Those
# whose chips JAX shows as several devices are left out.
_PEAKS = {"v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}

# Likewise, without sparsity, of NVIDIA's data sheets.
_GPU_PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}

# Seconds that a measurement takes at least, by as many calls.
_FILL = 0.1
_MOST_CALLS = 100


def _size(name: str, default: int | None, text: str):
  return flags.DEFINE_integer(name, default, text, lower_bound=1)


_NAMES = flags.DEFINE_list(
    "implementations",
    None,
    "Of xla and pallas. Default: those that are compiled for the device.",
)
_HEAD_DIM = _size("head_dim", 64, "D.")
_HIDDEN = _size("hidden", None, "Width between the layers. Default: 4 D.")
_CHUNK = _size("chunk", 64, "b, tokens per chunk.")
_HEADS = _size("heads", 8, "H.")
_BATCH = _size("batch", 1, "B.")
_LENGTH = _size("length", 1024, "T, a multiple of the chunk.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["float32", "bfloat16"], "Of the products' operands."
)
_MAX_GRAD_NORM = command_line.define_max_grad_norm()
_DIRECTION = flags.DEFINE_list("direction", list(_DIRECTIONS), "What to time.")
_ROUNDS = _size("rounds", 5, "Measurements per implementation and direction.")
_JSON = flags.DEFINE_bool(
    "json", False, "Prints a list of objects; the table goes to stderr."
)


def main(argv) -> None:
  command_line.start(argv)
  with command_line.clean_errors():
    problem = _check_sizes()
    command_line.check_names("direction", _DIRECTION.value, _DIRECTIONS)
    if _NAMES.value is not None:
      command_line.check_names(
          "implementations", _NAMES.value, _IMPLEMENTATIONS
      )
    device = command_line.device()
    names = _choose(device.platform, problem)
    # A cache of compiled programs would hide the first call's time.
    jax.config.update("jax_enable_compilation_cache", False)
    inputs = jax.block_until_ready(problem.inputs())
    rows = [
        row
        for direction in dict.fromkeys(_DIRECTION.value)
        for row in _measure(problem, inputs, names, direction, device)
    ]
  table = _table(problem, rows, device)
  if _JSON.value:
    print(table, file=sys.stderr)
    print(json.dumps(rows, indent=2))
  else:
    print(table)


def _check_sizes() -> _problems.Problem:
  length, chunk = _LENGTH.value, _CHUNK.value
  if length % chunk:
    less, more = length // chunk * chunk, -(-length // chunk) * chunk
    right = f"{less} or {more}" if less else str(more)
    raise ValueError(
        f"--length={length} is no multiple of --chunk={chunk}: {right} would"
        " be."
    )
  return _problems.Problem(
      head_dim=_HEAD_DIM.value,
      chunk=chunk,
      depth=2,
      hidden=_HIDDEN.value or 4 * _HEAD_DIM.value,
      batch=_BATCH.value,
      heads=_HEADS.value,
      length=length,
      max_grad_norm=_MAX_GRAD_NORM.value,
      packed=True,
      dtype=_DTYPE.value,
  )


def _choose(platform: str, problem: _problems.Problem) -> list[str]:
  """Returns the implementations to time, "xla" first."""
  reason = None if platform in ("tpu", "cpu") else f"{platform} has no kernel"
  if platform == "gpu":
    reason = problem.why_not_gpu()
  is_compiled = platform != "cpu" and reason is None
  names = _NAMES.value or ["xla", *["pallas"] * is_compiled]
  if "pallas" in names and reason is not None:
    raise ValueError(f"--implementations: only xla can be timed: {reason}.")
  return [name for name in _IMPLEMENTATIONS if name in names]


def model_flops(problem: _problems.Problem, direction: str) -> int:
  """Returns the FLOPs of a program with momentum, on whole chunks."""
  shapes = problem.net.layer_shapes(problem.head_dim)
  passes = ["forward"] + ["backward"] * (direction == "backward")
  macs = sum(
      math.prod(product)
      for each in passes
      for product in _work.products(shapes, problem.chunk, each)
  )
  chunks = problem.batch * problem.heads * problem.length // problem.chunk
  return 2 * macs * chunks


def _measure(problem, inputs, names, direction, device) -> list[dict]:
  """Returns a row per implementation of one direction."""
  make, args = _problems.forward, [inputs]
  if direction == "backward":
    make = _problems.backward
    args.append(_problems.cotangents(problem, inputs))
  programs, first, calls = {}, {}, {}
  for name in names:
    programs[name] = make(_problems.implementation(name), problem)
    first[name] = _seconds(programs[name], args, 1)
    fit = int(_FILL / _seconds(programs[name], args, 1))
    calls[name] = max(1, min(fit, _MOST_CALLS))
  times: dict[str, list[float]] = {name: [] for name in names}
  for _ in range(_ROUNDS.value):
    for name in names:
      times[name].append(_seconds(programs[name], args, calls[name]))
  medians = {name: statistics.median(t) for name, t in times.items()}
  flops = model_flops(problem, direction)
  tokens = problem.batch * problem.length
  generation = tuning.GENERATIONS.get(device.device_kind, "")
  peak = _PEAKS.get(generation, _GPU_PEAKS.get(device.device_kind))
  return [
      {
          "implementation": name,
          "direction": direction,
          "device": device.device_kind,
          "platform": device.platform,
          "versions": command_line.describe(device),
          "speed_is_meaningful": not _is_interpreted(name, device),
          "head_dim": problem.head_dim,
          "hidden": problem.hidden,
          "chunk": problem.chunk,
          "heads": problem.heads,
          "batch": problem.batch,
          "length": problem.length,
          "dtype": problem.dtype,
          "max_grad_norm": problem.max_grad_norm,
          "first_call_seconds": first[name],
          "milliseconds": 1e3 * seconds,
          "rounds_milliseconds": [1e3 * t for t in times[name]],
          "calls_per_round": calls[name],
          "tokens_per_second": tokens / seconds,
          "time_ratio_to_xla": seconds / medians["xla"]
          if "xla" in medians
          else None,
          "model_flops": flops,
          "model_flops_per_second": flops / seconds,
          "share_of_bfloat16_peak": flops / seconds / peak if peak else None,
      }
      for name, seconds in medians.items()
  ]


def _is_interpreted(name: str, device) -> bool:
  return name == "pallas" and device.platform == "cpu"


def _seconds(program, args, calls: int) -> float:
  """Returns the seconds of a call."""
  start = time.perf_counter()
  for _ in range(calls):
    results = program(*args)
  jax.block_until_ready(results)
  return (time.perf_counter() - start) / calls


def _table(problem, rows: list[dict], device) -> str:
  """Returns what was measured, as a table."""
  lines = [
      f"Measured on {command_line.describe(device)}; medians of"
      f" {_ROUNDS.value} rounds.",
      f"D {problem.head_dim}, hidden {problem.hidden}, chunk {problem.chunk},"
      f" heads {problem.heads}, batch {problem.batch}, length"
      f" {problem.length}, {problem.dtype}"
      + command_line.describe_max_grad_norm(problem.max_grad_norm)
      + "; backward includes forward.",
      "",
      f"{'':<20}{'ms':>10}{'tokens/s':>13}{'time / xla':>12}"
      f"{'model GFLOP':>13}{'TFLOP/s':>10}{'bf16 peak':>11}{'first, s':>10}",
  ]
  for row in rows:
    ratio, share = row["time_ratio_to_xla"], row["share_of_bfloat16_peak"]
    note = "" if row["speed_is_meaningful"] else "  interpreted"
    lines.append(
        f"{row['direction'] + ' ' + row['implementation']:<20}"
        f"{row['milliseconds']:>10.3f}{row['tokens_per_second']:>13,.0f}"
        f"{'-' if ratio is None else f'{ratio:.2f}':>12}"
        f"{row['model_flops'] / 1e9:>13.2f}"
        f"{row['model_flops_per_second'] / 1e12:>10.3f}"
        f"{'-' if share is None else f'{share:.1%}':>11}"
        f"{row['first_call_seconds']:>10.2f}{note}"
    )
  if not all(row["speed_is_meaningful"] for row in rows):
    lines += [
        "",
        "interpreted: the kernel ran in interpret mode; these numbers are"
        " meaningless for its speed.",
    ]
  return "\n".join(lines)


if __name__ == "__main__":
  app.run(main)
