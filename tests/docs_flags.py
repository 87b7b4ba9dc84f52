# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parses command lines of this project's programs, and runs none of them.

    python -m tests.docs_flags < LINES

Reads command lines, one a line, and prints for each a JSON string: what is wrong
with it, empty where nothing is. Flags belong to a process, and programs define
some of the same names: each is imported here, and its flags taken away again.
"""

import importlib
import json
import shlex
import sys

from absl import flags


def problem(line: str) -> str:
  """Returns what is wrong with a command line, "" where nothing is."""
  words = shlex.split(line, comments=True)
  start = words.index("-m") + 1
  name, arguments = words[start], words[start + 1 :]
  known = set(flags.FLAGS)
  # ml_collections looks for the overrides of a configuration there.
  sys.argv = [name, *arguments]
  try:
    importlib.import_module(name)
    rest = flags.FLAGS(sys.argv)[1:]
    return f"arguments without a flag: {rest}" if rest else ""
  except (flags.Error, ImportError, LookupError, AttributeError) as error:
    return f"{type(error).__name__}: {error}"
  except (OSError, TypeError, ValueError) as error:
    return f"{type(error).__name__}: {error}"
  finally:
    for defined in set(flags.FLAGS) - known:
      delattr(flags.FLAGS, defined)
    flags.FLAGS.unparse_flags()
    for module in list(sys.modules):
      if module.split(".")[0] == "experiments" or module == name:
        del sys.modules[module]


def main() -> None:
  """Answers the lines of standard input."""
  for line in sys.stdin:
    print(json.dumps(problem(line)), flush=True)


if __name__ == "__main__":
  main()
