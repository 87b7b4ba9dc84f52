# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parses command lines of this project's programs, and runs none of them.

    python -m tests.docs_flags < LINES

Reads command lines, one a line, and prints for each a JSON string: what is wrong
with it, empty where nothing is.
"""

import json
import shlex
import sys

from absl import flags

from experiments import completion


def problem(line: str) -> str:
  """Returns what is wrong with a command line, "" where nothing is."""
  words = shlex.split(line, comments=True)
  start = words.index("-m") + 1
  name, arguments = words[start], words[start + 1 :]
  # ml_collections looks for the overrides of a configuration there.
  sys.argv = [name, *arguments]
  try:
    with completion.importing(name):
      rest = flags.FLAGS(sys.argv)[1:]
    return f"arguments without a flag: {rest}" if rest else ""
  except (flags.Error, ImportError, LookupError, AttributeError) as error:
    return f"{type(error).__name__}: {error}"
  except (OSError, TypeError, ValueError) as error:
    return f"{type(error).__name__}: {error}"
  finally:
    flags.FLAGS.unparse_flags()


def main() -> None:
  """Answers the lines of standard input."""
  for line in sys.stdin:
    print(json.dumps(problem(line)), flush=True)


if __name__ == "__main__":
  main()
