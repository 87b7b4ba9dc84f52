# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs modules as `python -m` does, each in a process of its own, forked from this
one, which has imported the libraries: most of what a short command takes.

Started by `tests.experiments.processes`. Every line of standard input is a command,
as JSON: the module, its arguments, and files for its output; every line of
standard output is the exit status of one.

What a command does not import itself is there all the same: that every one starts
by itself too is for the tests that run it as a user does (console_test).
"""

import importlib
import json
import os
import runpy
import sys
import warnings

from jax._src import xla_bridge

# What the commands share, and what does not define their flags.
_LIBRARIES = (
    "grain",
    "matplotlib.pyplot",
    "titans_jax.inference",
    "titans_jax.training.trainer",
)


def main():
  for library in _LIBRARIES:
    importlib.import_module(library)
  # JAX's devices have threads, which a fork would not take along. (Those of
  # NumPy's library, of which Python warns, are started anew.)
  assert not xla_bridge.backends_are_initialized(), _LIBRARIES
  warnings.filterwarnings("ignore", "This process .* is multi-threaded")
  for line in sys.stdin:
    command = json.loads(line)
    child = os.fork()
    if not child:
      return run(*command)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


def run(module, arguments, stdout, stderr):
  """Runs a module in this process, to the end of both."""
  for stream, path in enumerate((os.devnull, stdout, stderr)):
    opened = os.open(path, os.O_RDWR | os.O_CREAT)
    os.dup2(opened, stream)
    os.close(opened)
  sys.argv[1:] = arguments
  runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
