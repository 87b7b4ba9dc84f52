# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Completion of `titans`, its names and their flags, for bash and zsh.

    titans completion > ~/.titans_completion
    echo 'source ~/.titans_completion' >> ~/.bashrc

In zsh put `autoload -U +X bashcompinit && bashcompinit` in front of the line.
The fields of a configuration are completed too, those of the default file.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from typing import Any, Iterator

from absl import app
from absl import flags
import ml_collections

from . import _console
from . import _flags

_SCRIPT = """\
# titans_jax, made by `titans completion`.
_titans() {
  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
  local words= start= IFS=$' \\t\\n'
  COMPREPLY=()
  # Values are files. bash takes the sign for a word, zsh leaves it in one.
  case "$before $word" in
    *\\ --*=*) start="${word%%=*}="; word="${word#*=}";;
    =\\ *) ;;
    *\\ =) word=;;
    *)
      case ${1##*/}:${COMP_WORDS[1]} in
@CASES@
      esac
      if [[ ${1##*/} == titans && $COMP_CWORD == 1 ]]; then
        words="@NAMES@"
      fi
      COMPREPLY=($(compgen -W "$words" -- "$word"))
      return;;
  esac
  IFS=$'\\n'
  local file
  for file in $(compgen -f -- "$word"); do
    if [[ -d $file ]]; then file="$file/"; fi
    COMPREPLY+=("$start$file")
  done
}
complete -o nospace -F _titans titans titans-pretrain titans-inspect
"""

# Console scripts of one experiment.
_ALONE = {"pretrain": "titans-pretrain", "inspect_checkpoint": "titans-inspect"}


# absl knows the modules that leave their flags to others by their address, which
# no other module may get.
_taken_away: list[types.ModuleType] = []


def main(argv) -> None:
  _flags.start(argv)
  cases = []
  for name in _console.names():
    patterns = [f"titans:{name}"]
    if name in _ALONE:
      patterns.append(f"{_ALONE[name]}:*")
    words = " ".join(_words(flags_of(name)))
    cases.append(f'        {"|".join(patterns)}) words="{words}";;')
  script = _SCRIPT.replace("@CASES@", "\n".join(cases))
  print(script.replace("@NAMES@", " ".join(_console.names())), end="")


def flags_of(name: str) -> list[flags.Flag]:
  """Returns the flags that an experiment's --help shows."""
  with importing(f"{__package__}.{name}") as module:
    return flags.FLAGS.get_key_flags_for_module(module)


@contextlib.contextmanager
def importing(name: str) -> Iterator[types.ModuleType]:
  """Imports a program for as long as its flags are needed.

  Every program defines flags of its own, of the same names as others': they are
  taken away again, and so are the modules of its package that define them.
  """
  before, loaded = set(flags.FLAGS), set(sys.modules)
  try:
    yield importlib.import_module(name)
  finally:
    for flag in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, flag)
    for other in set(sys.modules) - loaded:
      package, _, short = other.rpartition(".")
      if package == name.rpartition(".")[0]:
        _taken_away.append(sys.modules.pop(other))
        delattr(sys.modules[package], short)


def _words(found: list[flags.Flag]) -> Iterator[str]:
  """Yields what can be completed."""
  for flag in found:
    if flag.boolean:
      yield from (f"--{flag.name}", f"--no{flag.name}")
      continue
    yield f"--{flag.name}="
    if isinstance(flag.value, ml_collections.ConfigDict):
      for path in _paths(flag.value):
        yield f"--{flag.name}.{path}="


def _paths(values: Any, prefix: str = "") -> Iterator[str]:
  """Yields the paths of a configuration's fields."""
  for name in values:
    field = values.get_ref(name).get()
    if isinstance(field, ml_collections.ConfigDict):
      yield from _paths(field, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}"


if __name__ == "__main__":
  app.run(main)
