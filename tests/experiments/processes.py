# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Experiments as their users run them: processes, files, signals."""

import atexit
import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

import tests
from titans_jax.training import checkpoints
from titans_jax.training import metrics

ROOT = pathlib.Path(__file__).parent.parent.parent

# Overrides that make the quickstart a model of a few thousand parameters.
TINY = (
    "--config.model.variant=lmm",
    "--config.model.num_layers=1",
    "--config.model.model_dim=16",
    "--config.model.num_heads=2",
    "--config.model.memory.depth=1",
    "--config.model.chunk_size=8",
    "--config.model.segment_length=16",
    "--config.model.window=16",
    "--config.data.sequence_length=32",
    "--config.data.batch_size=4",
    "--config.train.num_steps=60",
    "--config.train.log_every=1",
    "--config.train.eval_every=25",
    "--config.train.checkpoint_every=7",
    "--sample_tokens=8",
)


def folder(case):
  """Returns an empty folder for a test class, removed behind it."""
  path = tempfile.mkdtemp(prefix="titans_")
  case.addClassCleanup(shutil.rmtree, path, ignore_errors=True)
  return pathlib.Path(path)


def command(experiment, *args):
  return [sys.executable, "-m", f"experiments.{experiment}", *map(str, args)]


def environment():
  # One device and float32, as a user has them.
  ours = {"XLA_FLAGS": tests.QUICK_COMPILES, "PYTHONPATH": str(ROOT)}
  kept = os.environ.copy()
  kept.pop("PYTEST_CURRENT_TEST", None)
  return kept | ours


def run(experiment, *args, file_blocks=None):
  """Runs an experiment to its end and returns the finished process.

  Args:
    experiment: its name.
    *args: of the command line.
    file_blocks: 512-byte blocks that a file may grow to; None: no limit.
  """
  if file_blocks is None:
    return run_module(f"experiments.{experiment}", *args)
  limited = f'ulimit -f {file_blocks}; exec "$@"'
  return finish(["sh", "-c", limited, "sh", *command(experiment, *args)])


# By their environments: what runs modules, and is at rest.
_interpreters = {}


def run_module(module, *args):
  """Runs what `python -m module` does to its end, by `prepared`, and returns the
  finished process."""
  variables = tuple(sorted(environment().items()))
  interpreter = _interpreters.pop(variables, None) or _Interpreter(variables)
  try:
    finished = interpreter.run(module, [str(arg) for arg in args])
  except BaseException:
    interpreter.kill()  # What it does by now nobody knows.
    raise
  _interpreters[variables] = interpreter
  return finished


class _Interpreter:
  """A process of `tests.experiments.prepared`, which runs modules."""

  def __init__(self, variables):
    self._process = subprocess.Popen(
        [sys.executable, "-m", "tests.experiments.prepared"],
        cwd=ROOT,
        encoding="utf-8",
        env=dict(variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    atexit.register(self.kill)

  def run(self, module, arguments):
    """Returns the finished process of a module."""
    with tempfile.TemporaryDirectory(prefix="titans_") as outputs:
      paths = [pathlib.Path(outputs, name) for name in ("stdout", "stderr")]
      print(
          json.dumps([module, arguments, *map(str, paths)]),
          file=self._process.stdin,
          flush=True,
      )
      done, _, _ = select.select([self._process.stdout], [], [], 300)
      status = self._process.stdout.readline() if done else ""
      said = [
          path.read_text("utf-8", "replace") if path.exists() else ""
          for path in paths
      ]
    if not status:
      why = "its interpreter ended" if done else "it has not ended in 300 s"
      raise RuntimeError(f"{module} {arguments}: {why}; it said {said}")
    return subprocess.CompletedProcess([module, *arguments], int(status), *said)

  def kill(self):
    """Ends it, and what it runs."""
    atexit.unregister(self.kill)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.communicate()


def finish(arguments):
  """Runs a command to its end and returns the finished process."""
  return subprocess.run(
      arguments,
      capture_output=True,
      cwd=ROOT,
      encoding="utf-8",
      env=environment(),
      errors="replace",
      timeout=300,
      check=False,
  )


def assert_refused(case, process, message):
  """Asserts that a command ended with a message instead of a traceback."""
  case.assertEqual(process.returncode, 1)
  case.assertIn(message, process.stderr)
  case.assertNotIn("Traceback", process.stderr)


def assert_all_refused(case, experiment, arguments):
  """Asserts that a command refuses arguments, before it makes its workdir.

  Args:
    case: the test, with a `folder`.
    experiment: its name.
    arguments: pairs of an argument and what the message holds.
  """
  workdir = case.folder / "refused"
  for argument, message in arguments:
    process = run(experiment, f"--workdir={workdir}", argument)
    assert_refused(case, process, message)
  case.assertFalse(workdir.exists())


def stop_at_row(workdir, rows, signal, *args):
  """Runs pretrain, signals it once it has written so many rows of metrics.

  Returns:
    The process's exit status and output.
  """
  process = subprocess.Popen(
      command("pretrain", f"--workdir={workdir}", *args),
      cwd=ROOT,
      env=environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      encoding="utf-8",
  )
  deadline = time.monotonic() + 300
  while process.poll() is None and len(metrics.read_metrics(workdir)) < rows:
    if time.monotonic() > deadline:
      process.kill()
    time.sleep(0.005)
  process.send_signal(signal)
  output, _ = process.communicate(timeout=60)
  return process.returncode, output


def params(workdir, step=None):
  """Returns the parameters of a workdir's newest or named checkpoint."""
  manager = checkpoints.open_checkpoints(workdir)
  restored, _, _ = manager.restore_params(step)
  manager.close()
  return restored


def curve(workdir):
  """Returns a workdir's metrics without what a clock decides."""
  rows = metrics.read_metrics(workdir)
  return [
      {k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows
  ]


def write_text(path, seed=0, size=4000):
  """Writes words with a pattern to learn, the bytes of which are not UTF-8."""
  rng = np.random.default_rng(seed)
  words = rng.choice(["one", "two", "three", "f\xfcnf"], size)
  path.write_bytes(" ".join(words).encode("latin-1"))
  return path
