# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the experiments' command lines share."""

from __future__ import annotations

import pathlib

from ml_collections import config_flags

from pallas_kernels import command_line

start = command_line.start

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


def clean_errors(*types: type[Exception]):
  """Ends with the message alone, without a traceback, on a user's error."""
  return command_line.clean_errors(ImportError, OSError, *types)
