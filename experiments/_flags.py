# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the experiments' command lines share."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

_CONFIGS = pathlib.Path(__file__).parent / "configs"


def define_config(default: str):
  """Defines --config, a configuration file."""
  return config_flags.DEFINE_config_file(
      "config",
      str(_CONFIGS / default),
      "Configuration file; its fields can be set with --config.FIELD=VALUE.",
      lock_config=True,
  )


def module(name: str) -> str:
  """Returns an experiment's module, in a checkout or in an installed wheel."""
  return f"{__package__}.{name}"


def start(argv) -> None:
  """Begins an experiment: refuses arguments that are no flags, and keeps the
  libraries' log to warnings unless --verbosity is given."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)


@contextlib.contextmanager
def clean_errors(*types: type[Exception]):
  """Ends with the message alone, without a traceback, on a user's error."""
  try:
    yield
  except (ValueError, ImportError, OSError, *types) as error:
    if "TITANS_TRACEBACK" in os.environ:
      raise
    print(
        f"Error: {error}\n(TITANS_TRACEBACK=1 shows where.)",
        file=sys.stderr,
        flush=True,
    )
    sys.exit(1)
