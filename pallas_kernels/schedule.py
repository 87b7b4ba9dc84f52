# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How well the compiler schedules the memory's kernels; needs no TPU.

    python -m pallas_kernels.schedule [--chip=v5p] [--head_dim=64 --chunk=16,64]

Compiles the forward and the backward kernel ahead of time with libtpu (the extra
`tpu`), one batch row, and counts the bundles of instructions that they execute,
one a cycle. Efficiency is the least cycles that the step's matrix products need,
divided by these; the bound is what it could be if only the products counted,
each cut for the matrix unit by itself. All of it is the compiler's word
("compiler"), not a measurement: a core also waits for memory.

Numbers are per token and head. Predicated blocks, which ask for the next blocks
of the arrays, are counted every time; the copies of a program's first and last
carry, which the core waits for once a program, are not.

    python -m pallas_kernels.schedule --target=h200 [--head_dim=64 --chunk=16]

Compiles the kernels for Hopper GPUs instead: forward, alone and with the states
that its backward pass starts from ("forward, kept"), that of the backward pass, and
those of the coefficients. The compiler says what a thread has of registers, and
bytes spilled; shared memory is what the kernel asks for, and from both follow the
blocks that a multiprocessor holds at once. Takes the extra `cuda13`, on Python 3.12
or newer.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Sequence

from absl import app
from absl import flags

from pallas_kernels import _aot
from pallas_kernels import _aot_gpu
from pallas_kernels import _dumps
from pallas_kernels import _work
from pallas_kernels import command_line
from pallas_kernels import tuning
from titans_jax.memory import hopper

_CHIP = flags.DEFINE_enum("chip", "v5p", list(tuning.CHIPS), "TPU generation.")
_TARGET = flags.DEFINE_enum(
    "target", None, list(_aot_gpu.TARGETS), "GPU, instead of a TPU of --chip."
)
_HEAD_DIM = flags.DEFINE_list(
    "head_dim", None, "Head dimensions D (default 128, on a GPU 64)."
)
_HIDDEN = flags.DEFINE_list(
    "hidden", None, "Widths of the memory's hidden layer (default 4 D)."
)
_CHUNK = flags.DEFINE_list(
    "chunk",
    None,
    "Chunk sizes b (default 64, on a GPU 16). Every combination of the three lists is"
    " compiled; without any of them a table of usual shapes.",
)
_HEADS = flags.DEFINE_integer("heads", 16, "Memory heads.", lower_bound=1)
_TILE = flags.DEFINE_integer(
    "tile",
    None,
    "Heads that a program runs in lockstep, a divisor of --heads (default: as"
    " the kernel chooses).",
    lower_bound=1,
)
_GROUP = flags.DEFINE_integer(
    "group",
    None,
    "Chunks between carries that are kept for the backward pass (default: as the"
    " kernel chooses).",
    lower_bound=1,
)
_MAX_GRAD_NORM = command_line.define_max_grad_norm()
_JSON = flags.DEFINE_bool("json", False, "Prints JSON instead of a table.")

# (D, hidden, b).
_DEFAULT = ((128, 512, 64), (128, 512, 256), (64, 256, 64), (64, 256, 16))
_DEFAULT_GPU = ((48, 192, 16), (64, 256, 16), (48, 192, 32), (32, 128, 64))

_DIRECTIONS = ("forward", "backward")

# ------------------------------------------------------------------------------
# What the compiler makes of them.


def compile_and_count(case: _aot.Case) -> list[dict[str, Any]]:
  """Compiles a case in a process of its own; returns a row per direction.

  Raises:
    ValueError: the kernel cannot be compiled.
  """
  with tempfile.TemporaryDirectory(prefix="titans_schedule_") as folder:
    dumps = pathlib.Path(folder)
    cuts = _compile(case, dumps)
    return [
        _row(case, direction, cuts[direction], dumps)
        for direction in _DIRECTIONS
    ]


def _compile(case: _aot.Case, dumps: pathlib.Path) -> dict[str, Any]:
  environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      # A compiled kernel out of the cache writes no dump.
      "JAX_ENABLE_COMPILATION_CACHE": "0",
      "LIBTPU_INIT_ARGS": " ".join(
          [os.environ.get("LIBTPU_INIT_ARGS", ""), _dumps.dump(dumps)]
      ).strip(),
  }
  return _run(_aot.__name__, case, environment)[0]


def _run(module: str, case, environment) -> tuple[dict[str, Any], str]:
  """Compiles a case; returns what the module says, and all of its output."""
  environment.pop("XLA_FLAGS", None)
  process = subprocess.run(
      [sys.executable, "-m", module, json.dumps(vars(case))],
      capture_output=True,
      encoding="utf-8",
      env=environment,
      errors="replace",
      check=False,
  )
  if process.returncode:
    raise RuntimeError(
        f"The compiler ended with {process.returncode}:\n{process.stderr}"
    )
  result = json.loads(process.stdout.splitlines()[-1])
  if "error" in result:
    raise ValueError(result["error"])
  return result, process.stdout


def compile_for_gpu(case: _aot_gpu.Case) -> list[dict[str, Any]]:
  """Compiles a case in a process of its own; returns a row per kernel.

  Raises:
    ValueError: there is no kernel for these sizes.
  """
  environment = os.environ | {"JAX_PLATFORMS": "cpu"} | _aot_gpu.REPORT
  cut, text = _run(_aot_gpu.__name__, case, environment)

  def row(name, kernel):
    block = cut["kernels"][name]
    return {
        "source": "compiler",
        "kernel": "hopper",
        "direction": hopper.KERNELS[name],
        "target": case.target,
        "head_dim": case.head_dim,
        "hidden": case.hidden,
        "chunk": case.chunk,
        "max_grad_norm": case.max_grad_norm,
        **kernel,
        **block,
        "blocks_per_core": _aot_gpu.blocks_per_core(
            case.target,
            kernel["registers"],
            block["threads"],
            block["shared_bytes"],
        ),
    }

  return [row(*item) for item in _aot_gpu.read_report(text).items()]


def _row(case, direction, cut, dumps) -> dict[str, Any]:
  schedule = _dumps.read(dumps, f"fused_scan_{direction}")
  iterations = cut["programs"] * cut["groups"]
  counts = schedule.executed(
      iterations, [iterations * n for n in cut["inner_loops"]]
  )
  shapes, chip = case.net.layer_shapes(case.head_dim), tuning.CHIPS[case.chip]
  places = case.heads * case.chunks * case.chunk
  bundles = counts.bundles / places
  least = _work.least_cycles(shapes, case.chunk, direction, chip)
  return {
      "source": "compiler",
      "kernel": "fused_scan",
      "direction": direction,
      "chip": case.chip,
      "head_dim": case.head_dim,
      "hidden": case.hidden,
      "chunk": case.chunk,
      "heads": case.heads,
      "max_grad_norm": case.max_grad_norm,
      "tile": cut["tile"],
      "group": cut["group"],
      "bundles_per_token_head": bundles,
      "least_cycles_per_token_head": least,
      "efficiency": least / bundles,
      "bound": _work.bound(shapes, case.chunk, direction, chip),
      "units": {
          name: uses / counts.bundles / schedule.capacities[name]
          for name, uses in counts.uses.items()
      },
      "spills": counts.uses["VSTORE:SPILL"] / places,
      "vmem_bytes": cut["vmem_bytes"],
  }


# ------------------------------------------------------------------------------
# The command.


def _table(rows: Sequence[dict[str, Any]]) -> str:
  units = list(rows[0]["units"])
  head = ["D", "hidden", "b", "", "tile", "group", "bundles", "least"]
  head += ["eff.", "bound", *units, "spills", "VMEM"]
  lines = [head]
  for row in rows:
    lines.append(
        [
            *map(str, (row["head_dim"], row["hidden"], row["chunk"])),
            row["direction"],
            "x".join(map(str, row["tile"])),
            str(row["group"]),
            f"{row['bundles_per_token_head']:.2f}",
            f"{row['least_cycles_per_token_head']:.2f}",
            f"{row['efficiency']:.3f}",
            f"{row['bound']:.2f}",
            *(f"{row['units'][name]:.2f}" for name in units),
            f"{row['spills']:.2f}",
            f"{row['vmem_bytes'] / tuning.MIB:.1f}",
        ]
    )
  return _aligned(lines)


def _table_gpu(rows: Sequence[dict[str, Any]]) -> str:
  head = ["D", "hidden", "b", "", "registers", "spill stores", "spill loads"]
  lines = [head + ["threads", "shared KiB", "blocks", "cluster"]]
  for row in rows:
    names = ("registers", "spill_stores", "spill_loads", "threads")
    lines.append(
        [
            *map(str, (row["head_dim"], row["hidden"], row["chunk"])),
            row["direction"],
            *(str(row[name]) for name in names),
            f"{row['shared_bytes'] / 1024:.1f}",
            str(row["blocks_per_core"]),
            str(row["cluster"]),
        ]
    )
  return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(*lines)]
  return "\n".join(
      "  ".join(cell.rjust(width) for cell, width in zip(line, widths))
      for line in lines
  )


def _positive_integers(values) -> bool:
  if values is None:
    return True
  if not values or not all(v.isdecimal() and int(v) for v in values):
    raise flags.ValidationError("must be positive integers, like 16,64.")
  return True


for _name in ("head_dim", "hidden", "chunk"):
  flags.register_validator(_name, _positive_integers)


@flags.multi_flags_validator(["heads", "tile"])
def _tile_divides(values) -> bool:
  if values["tile"] is not None and values["heads"] % values["tile"]:
    raise flags.ValidationError(
        f"--tile={values['tile']} must divide --heads={values['heads']}."
    )
  return True


@flags.multi_flags_validator(["target", "chip", "tile"])
def _flags_of_a_target(values) -> bool:
  if values["target"] is not None:
    for name in ("chip", "tile"):
      if flags.FLAGS[name].present:
        raise flags.ValidationError(
            f"--{name} is of TPUs, and --target={values['target']} is a GPU."
        )
  return True


def _shapes(default, head_dim: int, chunk: int) -> list[tuple[int, int, int]]:
  """Returns every combination of the flags, or, without any, the default."""
  lists = (_HEAD_DIM.value, _HIDDEN.value, _CHUNK.value)
  if lists == (None, None, None):
    return list(default)
  head_dims, hidden, chunks = (
      None if values is None else list(map(int, values)) for values in lists
  )
  return [
      (dim, width, size)
      for dim in head_dims or [head_dim]
      for width in hidden or [4 * dim]
      for size in chunks or [chunk]
  ]


def _cases() -> list[Any]:
  if _TARGET.value is not None:
    shapes = _shapes(_DEFAULT_GPU, 64, 16)
    make: Any = functools.partial(_aot_gpu.Case, _TARGET.value)
  else:
    shapes = _shapes(_DEFAULT, 128, 64)
    make = functools.partial(_aot.Case, _CHIP.value, tile=_TILE.value)
  return [
      make(
          *shape,
          heads=_HEADS.value,
          group=_GROUP.value,
          max_grad_norm=_MAX_GRAD_NORM.value,
      )
      for shape in shapes
  ]


def main(argv) -> None:
  command_line.start(argv)
  if _TARGET.value is not None:
    reason = _aot_gpu.why_not()
    if reason is not None:
      sys.exit(
          f"Error: {reason}: pip install 'titans-jax[cuda13]', on Python 3.12"
          " or newer."
      )
    compile_one: Any = compile_for_gpu
    table, compiler, device = _table_gpu, "jaxlib", _TARGET.value
    about = (
        "Registers a thread, bytes spilled, threads and shared memory a block,"
        " blocks a multiprocessor."
    )
  elif importlib.util.find_spec("libtpu") is None:
    sys.exit(
        "Error: the TPU compiler, libtpu, is not installed: pip install"
        " 'titans-jax[tpu]'."
    )
  else:
    compile_one, table = compile_and_count, _table
    compiler, device = "libtpu", _CHIP.value
    about = (
        "Bundles, least cycles and spills per token and head; units: share of"
        " their uses; VMEM in MiB."
    )
  rows: list[dict[str, Any]] = []
  for case in _cases():
    try:
      rows += compile_one(case)
    except ValueError as error:
      fields = {k: v for k, v in dataclasses.asdict(case).items() if v}
      sys.exit(f"Error: {fields}: {error}")
  if _JSON.value:
    print(json.dumps(rows, indent=2))
    return
  versions = ", ".join(
      f"{name} {importlib.metadata.version(name)}" for name in ("jax", compiler)
  )
  rule = command_line.describe_max_grad_norm(_MAX_GRAD_NORM.value)
  print(f"Source: compiler ({versions}), {device}{rule}. {about}")
  print(table(rows))


if __name__ == "__main__":
  app.run(main)
