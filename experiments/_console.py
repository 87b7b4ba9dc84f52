# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The console scripts: `titans NAME` is `python -m titans_jax.experiments.NAME`."""

from __future__ import annotations

import ast
import difflib
import pathlib
import pkgutil
import runpy
import sys

_HELP = ("help", "-h", "--help", "--helpshort", "--helpfull")


def names() -> list[str]:
  """Returns the experiments' names."""
  return sorted(
      module.name
      for module in pkgutil.iter_modules([str(_folder())])
      if not module.name.startswith("_") and not module.ispkg
  )


def summary(name: str) -> str:
  """Returns the first line of an experiment's documentation."""
  source = (_folder() / f"{name}.py").read_text(encoding="utf-8")
  return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def main() -> None:
  """Runs `titans NAME [flags]`; without a name, lists the names."""
  known = names()
  if len(sys.argv) < 2 or sys.argv[1] in _HELP:
    width = max(map(len, known))
    print("titans NAME [flags]; titans NAME --help has the flags.\n")
    for name in known:
      print(f"  {name:<{width}}  {summary(name)}")
    return
  name = sys.argv.pop(1)
  if name.startswith("-"):
    sys.exit(
        f"Error: titans {name}: flags stand behind the name, titans NAME {name}."
    )
  if name not in known:
    close = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    sys.exit(
        f"Error: titans {name}: there is no such name.{hint} `titans` lists"
        " them."
    )
  _run(name)


def pretrain() -> None:
  """Runs `titans-pretrain`."""
  _run("pretrain")


def inspect() -> None:
  """Runs `titans-inspect`."""
  _run("inspect_checkpoint")


def _folder() -> pathlib.Path:
  return pathlib.Path(__file__).parent


def _run(name: str) -> None:
  # As `python -m` does it, so that --help has the experiment's text and flags.
  runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)
