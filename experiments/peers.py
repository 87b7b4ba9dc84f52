# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""This project against titans-pytorch 0.5.5, on one CPU in one run.

    python -m experiments.peers --bench=DIR --peer_python=PATH \
        [--rows=mem_h4,mac_d2] [--rounds=3] [--workdir=runs/peers]

DIR is a folder with common.py (configurations and timing, used by both sides)
and titans_pytorch.py (the peer's side). PATH is the interpreter of a virtual
environment with torch and titans-pytorch. Nothing is installed: what is missing
is named.

Every point is a fresh process, and the two sides alternate: `--rounds` times
ours, the peer's, and the peer's with torch.compile. All are held to the same
two CPUs, and no compilation is kept from one process for the next. Written are
results.json and a table of medians: tokens per second, peak memory of the
process and seconds of the first call (with compilation), each with the ratio.

Rows mem_* are forward and backward through the memory layer; mac_d2 is a
training step of the MAC model (loss, gradients, clipping, AdamW); gen_cache and
gen_cache_b8 continue one prompt, and eight, token by token with the cache.
products_* compare the rule's forward and backward pass with the same list of
matrix products alone (one recomputation counted), and with the rate of one
large product.

The two sides do not compute the same function. The peer by default takes all
inner gradients at the initial weights (mem_h4_seqgrad: afresh every chunk, which
is nearest to ours), shares gates within a chunk, and lets a token read the
memory as of the chunk before. Its MAC puts 16 long-term tokens into each segment
of 128 and writes both as one chunk; ours recalls from the memory before
attention, and writes chunks of 128. It has 8 heads of 64 in attention and one of
256 in the memory; ours has the same in both: with --heads=memory (default) one
of 256, with --heads=attention 8 of 64.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

from absl import app
from absl import flags

from titans_jax import files

from . import _flags

# (config, mode) of every row. The peer generates without torch.compile.
_ROWS = {
    "mem_h4": ("mem_h4", "fwdbwd"),
    "mem_h4_seqgrad": ("mem_h4_seqgrad", "fwdbwd"),
    "mem_h1": ("mem_h1", "fwdbwd"),
    "mem_h4_long": ("mem_h4_long", "fwdbwd"),
    "mem_h4_chunk16": ("mem_h4_chunk16", "fwdbwd"),
    "mac_d2": ("mac_d2", "train"),
    "gen_cache": ("mac_d2", "gen_cache"),
    "gen_cache_b8": ("mac_d2", "gen_cache_b8"),
    "products_h4": ("mem_h4", "products"),
    "products_h1": ("mem_h1", "products"),
}
_COMPILED = ("fwdbwd", "train")
_THREADS = 2

_BENCH = flags.DEFINE_string(
    "bench",
    None,
    "Folder with common.py and titans_pytorch.py.",
    required=True,
)
_PEER_PYTHON = flags.DEFINE_string(
    "peer_python", None, "Interpreter with torch and titans-pytorch."
)
_NAMES = flags.DEFINE_list("rows", list(_ROWS), "Which to measure.")
_HEADS = flags.DEFINE_enum(
    "heads",
    "memory",
    ["attention", "memory"],
    "Which of the peer's heads our MAC has.",
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 3, "Fresh processes per side and row.", lower_bound=1
)
_COMPILE = flags.DEFINE_bool("compile", True, "Adds the peer's compiled mode.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/peers", "For results.json.")
_TIMEOUT = flags.DEFINE_integer(
    "timeout", 1800, "Seconds that a process may take.", lower_bound=1
)

# The peer's script has the name of the package that it imports, which would
# find the script itself if this were run from the script's folder.
_RUN_PEER = """
import runpy, sys
import titans_pytorch
folder = sys.argv.pop(1)
sys.path.append(folder)
runpy.run_path(folder + "/titans_pytorch.py", run_name="__main__")
"""
_FIND_PEER = """
import importlib.metadata as metadata
for name in ("torch", "titans-pytorch"):
  try:
    print(name, metadata.version(name))
  except metadata.PackageNotFoundError:
    print(name)
"""


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors():
    rows = _check_rows()
    bench = _check_bench()
    versions = {}
    if any(_ROWS[row][1] != "products" for row in rows):
      versions = _check_peer()
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    # Both sides' processes inherit the limit.
    cpus = sorted(os.sched_getaffinity(0))[:_THREADS]
    os.sched_setaffinity(0, cpus)
    path = workdir / "results.json"
    results: dict[str, dict] = {}
    for row in rows:
      results[row] = _measure_row(row, bench)
      written = {
          "versions": versions,
          "cpus": cpus,
          "heads": _HEADS.value,
          "rows": results,
      }
      files.replace(path, json.dumps(written, indent=2))
    print(_table(results))
    print(f"\nResults: {path}")


def _check_rows() -> list[str]:
  if not _NAMES.value:
    raise ValueError("--rows names none.")
  for row in _NAMES.value:
    if row not in _ROWS:
      raise ValueError(f"--rows: {row!r} is none of {tuple(_ROWS)}.")
  return _NAMES.value


def _check_bench() -> pathlib.Path:
  bench = pathlib.Path(_BENCH.value).absolute()
  for name in ("common.py", "titans_pytorch.py"):
    if not (bench / name).is_file():
      raise ValueError(f"--bench={_BENCH.value} holds no {name}.")
  return bench


def _check_peer() -> dict[str, str]:
  """Returns the versions of the peer's packages."""
  python = _PEER_PYTHON.value
  if python is None:
    raise ValueError(
        "--peer_python is missing: the interpreter of a virtual environment"
        " with torch and titans-pytorch."
    )
  process = _run_peer(["-c", _FIND_PEER], 60)
  if process.returncode:
    raise ValueError(
        f"--peer_python={python} does not run Python: {_last_line(process)}"
    )
  found = dict(line.partition(" ")[::2] for line in process.stdout.splitlines())
  missing = [name for name, version in found.items() if not version]
  if missing:
    raise ValueError(
        f"{python} lacks {' and '.join(missing)}: {python} -m pip install"
        f" {' '.join(missing)}"
    )
  return found


def _measure_row(row: str, bench: pathlib.Path) -> dict[str, list[dict]]:
  """Returns the points of a row by side, one per round."""
  config, mode = _ROWS[row]
  ours = [
      sys.executable,
      "-m",
      _flags.module("_peer_points"),
      f"--bench={bench}",
      f"--config={config}",
      f"--mode={mode}",
      f"--heads={_HEADS.value}",
  ]
  timeout = _TIMEOUT.value
  sides = {"ours": lambda: _run(ours, timeout, JAX_PLATFORMS="cpu")}
  if mode != "products":
    theirs = ["-c", _RUN_PEER, str(bench), config, mode]
    theirs.append(f"--threads={_THREADS}")
    sides["theirs"] = lambda: _run_peer(theirs, timeout)
    if _COMPILE.value and mode in _COMPILED:
      sides["compiled"] = lambda: _run_peer([*theirs, "--compile"], timeout)
  points: dict[str, list[dict]] = {side: [] for side in sides}
  for number in range(_ROUNDS.value):
    for side, run in sides.items():
      process = run()
      if not process.returncode:
        point = json.loads(process.stdout.splitlines()[-1])
      elif side == "ours":
        raise ValueError(f"{row}: {_last_line(process)}")
      else:
        point = {"error": _last_line(process)}
      points[side].append(point)
      print(f"{row} {number + 1}/{_ROUNDS.value} {side}: {point}", flush=True)
  return points


def _run_peer(
    arguments: list[str], timeout: float
) -> subprocess.CompletedProcess:
  name = str(_PEER_PYTHON.value)
  python = shutil.which(name) or name
  # Nothing here is the peer's to import, nor what an earlier process compiled.
  with tempfile.TemporaryDirectory() as folder:
    return _run(
        [os.path.abspath(python), *arguments],
        timeout,
        cwd=folder,
        PYTHONPATH="",
        TORCHINDUCTOR_CACHE_DIR=folder,
    )


def _run(
    command, timeout: float, cwd=None, **environment: str
) -> subprocess.CompletedProcess:
  """Runs a command; one that cannot start or takes too long has failed."""
  # A cache of compiled programs would hide the first call's time.
  environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  try:
    return subprocess.run(
        command,
        capture_output=True,
        cwd=cwd,
        encoding="utf-8",
        env=os.environ | environment,
        errors="replace",
        timeout=timeout,
        check=False,
    )
  except OSError as error:
    return subprocess.CompletedProcess(command, 127, "", str(error))
  except subprocess.TimeoutExpired:
    return subprocess.CompletedProcess(
        command, 124, "", f"not done after {timeout} seconds (--timeout)"
    )


def _last_line(process) -> str:
  lines = (process.stderr.strip() or process.stdout.strip()).splitlines()
  return lines[-1] if lines else f"exit status {process.returncode}"


def _median(points: list[dict], key: str):
  if any("error" in point for point in points):
    return None
  return statistics.median(point[key] for point in points)


def _table(rows: dict[str, dict]) -> str:
  """Returns what was measured, as a table."""
  lines = [
      "\nMedians of fresh processes: ours, the peer's (titans-pytorch), and the"
      " ratio ours / theirs.\nThe functions differ: see experiments/peers.py;"
      " mem_h4_seqgrad is the peer's nearest to ours.\n",
      f"{'row':<26}{'tokens/s':^30}{'peak memory, MB':^28}{'first call, s':^26}",
  ]
  failed = []
  for row, sides in rows.items():
    for side, label in (("theirs", ""), ("compiled", " (compiled)")):
      if side not in sides:
        continue
      cells = ""
      for key, width, form in (
          ("tokens_per_s", 10, ",.0f"),
          ("peak_rss_mb", 9, ",.0f"),
          ("first_s", 8, ".2f"),
      ):
        values = [_median(sides["ours"], key), _median(sides[side], key)]
        ratio = None if values[1] is None else values[0] / values[1]
        for value, spec in zip((*values, ratio), (form, form, ".2f")):
          text = "-" if value is None else format(value, spec)
          cells += f"{text:>{width if spec == form else 8}}"
        cells += "  "
      lines.append(f"{row + label:<24}{cells}")
      failed += [
          f"{row}{label}: {point['error']}"
          for point in sides[side]
          if "error" in point
      ][:1]
  alone = {row: s["ours"] for row, s in rows.items() if "theirs" not in s}
  if alone:
    lines.append(
        "\nThe rule forward and backward, and its matrix products alone:\n"
        f"{'row':<16}{'rule, s':>10}{'products, s':>13}{'ratio':>8}"
        f"{'GFLOP/s':>10}{'a large product, GFLOP/s':>27}"
    )
  for row, points in alone.items():
    lines.append(
        f"{row:<16}{_median(points, 'rule_s'):>10.3f}"
        f"{_median(points, 'products_s'):>13.3f}"
        f"{_median(points, 'ratio'):>8.2f}"
        f"{_median(points, 'products_gflops'):>10.0f}"
        f"{_median(points, 'large_gflops'):>27.0f}"
    )
  return "\n".join(lines + [f"\nFailed: {text}" for text in failed])


if __name__ == "__main__":
  app.run(main)
