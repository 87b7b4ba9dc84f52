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
"""

from __future__ import annotations

import dataclasses
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
from pallas_kernels import _dumps
from pallas_kernels import _work
from pallas_kernels import command_line
from pallas_kernels import tuning

_CHIP = flags.DEFINE_enum("chip", "v5p", list(tuning.CHIPS), "TPU generation.")
_HEAD_DIM = flags.DEFINE_list(
    "head_dim", None, "Head dimensions D (default 128)."
)
_HIDDEN = flags.DEFINE_list(
    "hidden", None, "Widths of the memory's hidden layer (default 4 D)."
)
_CHUNK = flags.DEFINE_list(
    "chunk",
    None,
    "Chunk sizes b (default 64). Every combination of the three lists is"
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
_JSON = flags.DEFINE_bool("json", False, "Prints JSON instead of a table.")

# (D, hidden, b).
_DEFAULT = ((128, 512, 64), (128, 512, 256), (64, 256, 64), (64, 256, 16))

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
  environment.pop("XLA_FLAGS", None)
  process = subprocess.run(
      [sys.executable, "-m", _aot.__name__, json.dumps(vars(case))],
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
  return result


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


def _cases() -> list[_aot.Case]:
  lists = (_HEAD_DIM.value, _HIDDEN.value, _CHUNK.value)
  shapes = list(_DEFAULT)
  if lists != (None, None, None):
    head_dims, hidden, chunks = (
        None if values is None else list(map(int, values)) for values in lists
    )
    shapes = [
        (head_dim, width, chunk)
        for head_dim in head_dims or [128]
        for width in hidden or [4 * head_dim]
        for chunk in chunks or [64]
    ]
  rest = (_HEADS.value, _TILE.value, _GROUP.value)
  return [_aot.Case(_CHIP.value, *shape, *rest) for shape in shapes]


def main(argv) -> None:
  command_line.start(argv)
  if importlib.util.find_spec("libtpu") is None:
    sys.exit(
        "Error: the TPU compiler, libtpu, is not installed: pip install"
        " 'titans-jax[tpu]'."
    )
  rows = []
  for case in _cases():
    try:
      rows += compile_and_count(case)
    except ValueError as error:
      fields = {k: v for k, v in dataclasses.asdict(case).items() if v}
      sys.exit(f"Error: {fields}: {error}")
  if _JSON.value:
    print(json.dumps(rows, indent=2))
    return
  versions = ", ".join(
      f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")
  )
  print(
      f"Source: compiler ({versions}), {_CHIP.value}. Bundles, least cycles and"
      " spills per token and head; units: share of their uses; VMEM in MiB."
  )
  print(_table(rows))


if __name__ == "__main__":
  app.run(main)
