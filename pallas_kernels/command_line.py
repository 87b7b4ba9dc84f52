# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What command lines share, those of the experiments too."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
from typing import Sequence

from absl import app
from absl import flags
from absl import logging
import jax

# Flags defined here are those of the program that asks for them.
flags.disclaim_key_flags()


def start(argv) -> None:
  """Refuses arguments that are no flags, and keeps the libraries' log to
  warnings unless --verbosity is given."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)


@contextlib.contextmanager
def clean_errors(*types: type[Exception]):
  """Ends with the message alone, without a traceback, on a user's error: a
  ValueError, or one of other types."""
  try:
    yield
  except (ValueError, *types) as error:
    if "TITANS_TRACEBACK" in os.environ:
      raise
    print(
        f"Error: {error}\n(TITANS_TRACEBACK=1 shows where.)",
        file=sys.stderr,
        flush=True,
    )
    sys.exit(1)


def define_max_grad_norm() -> flags.FlagHolder:
  """Defines the flag --max_grad_norm, the option of `memory.scan`."""
  flag = flags.DEFINE_float(
      "max_grad_norm",
      None,
      "Bound on a token's inner gradient, which pretraining sets (default: none).",
  )
  flags.register_validator(
      flag, lambda x: x is None or x > 0, message="must be positive."
  )
  return flag


def describe_max_grad_norm(bound: float | None) -> str:
  """Returns what a list of sizes goes on with; nothing without a bound."""
  return "" if bound is None else f", max_grad_norm {bound:g}"


def check_names(flag: str, names: Sequence[str], known: Sequence[str]) -> None:
  """Raises ValueError for a list flag that names none, or one unknown."""
  if not names:
    raise ValueError(f"--{flag} names none of {', '.join(known)}.")
  for name in names:
    if name not in known:
      raise ValueError(f"--{flag}: {name!r} is none of {', '.join(known)}.")


def positive_integers(flag: str, values: Sequence[str]) -> list[int]:
  """Returns a list flag's numbers, ascending, each once.

  Raises:
    ValueError: there is none, or one that is no positive integer.
  """
  if not values:
    raise ValueError(f"--{flag} names none.")
  for value in values:
    if not value.strip().isdigit() or int(value) < 1:
      raise ValueError(f"--{flag}: {value!r} is no positive integer.")
  return sorted({int(value) for value in values})


def device() -> jax.Device:
  """Returns the device that everything runs on.

  Raises:
    ValueError: JAX finds none of the platform that it was told to use.
  """
  try:
    return jax.devices()[0]
  except RuntimeError as error:
    raise ValueError(f"JAX finds no device: {error}") from error


def describe(device: jax.Device) -> str:
  """Returns the device's name and the versions of what compiles for it."""
  versions = []
  for name in ("jax", "jaxlib", "libtpu"):
    try:
      versions.append(f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
      versions.append(f"{name} not installed")
  return f"{device.device_kind} ({device.platform}), {', '.join(versions)}"
