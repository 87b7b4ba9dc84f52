# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs modules as `python -m` does, each in a process of its own, forked from one
that has imported the libraries: half of what a short command takes.

Started by `tests.experiments.processes`. Every line of standard input is a command,
as JSON: the module, its arguments, and files for its output; every line of
standard output is the exit status of one.
"""

import importlib
import json
import os
import resource
import runpy
import sys

# What the commands share. None of it starts JAX's devices, or defines their flags.
_LIBRARIES = (
    "grain",
    "matplotlib.pyplot",
    "titans_jax.inference",
    "titans_jax.training.trainer",
)


def main():
  for library in _LIBRARIES:
    importlib.import_module(library)
  for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
      return run(**asked)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


def run(module, arguments, stdout, stderr, file_blocks):
  """Runs a module in this process, to the end of both."""
  for path, stream in (os.devnull, 0), (stdout, 1), (stderr, 2):
    opened = os.open(path, os.O_RDWR)
    os.dup2(opened, stream)
    os.close(opened)
  if file_blocks is not None:
    limit = 512 * file_blocks
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
  sys.argv[1:] = arguments
  runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
