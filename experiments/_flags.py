# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the experiments' command lines share."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import sys
import time
from typing import Callable, Iterator

from absl import flags
import jax
from ml_collections import config_flags

from pallas_kernels import command_line
from titans_jax import files
from titans_jax.parallel import distributed

# What is defined here for an experiment is shown by its --help.
flags.disclaim_key_flags()

start = command_line.start

_SECONDS_BETWEEN_LINES = 15.0

_CONFIGS = pathlib.Path(__file__).parent / "configs"


def define_config(default: str, name: str = "config"):
  """Defines --config, or another flag, a configuration file."""
  return config_flags.DEFINE_config_file(
      name,
      str(_CONFIGS / default),
      f"Configuration file; its fields can be set with --{name}.FIELD=VALUE.",
      lock_config=True,
  )


def define_processes():
  """Defines the flags of a run of several processes, and returns what joins
  them, if there are any: to be called before anything is computed."""
  coordinator = flags.DEFINE_string(
      "coordinator_address",
      None,
      "HOST:PORT of process 0, where several processes make a run. On TPU pods,"
      " under SLURM and on Kubernetes it is found.",
  )
  num_processes = flags.DEFINE_integer(
      "num_processes", None, "Processes of the run."
  )
  process_id = flags.DEFINE_integer(
      "process_id", None, "Number of this process, from 0."
  )
  join_timeout = flags.DEFINE_float(
      "join_timeout",
      300.0,
      "Seconds to wait for the other processes.",
      lower_bound=1.0,
  )
  heartbeat_timeout = flags.DEFINE_float(
      "heartbeat_timeout",
      60.0,
      "Seconds of silence after which a process is taken for dead, and the"
      " others end.",
      lower_bound=1.0,
  )

  def join() -> None:
    distributed.initialize(
        coordinator.value,
        num_processes.value,
        process_id.value,
        timeout=join_timeout.value,
        heartbeat_timeout=heartbeat_timeout.value,
    )

  return join


def refuse_overrides(where: str, *prefixes: str, flag: str = "config") -> None:
  """Raises ValueError where a field of --config is set that means nothing.

  Args:
    where: why, for the message.
    *prefixes: of the fields' paths.
    flag: the configuration's name.
  """
  for name in config_flags.get_override_values(flags.FLAGS[flag]):
    if name.startswith(prefixes):
      raise ValueError(f"--{flag}.{name} means nothing {where}.")


def refuse_flag(name: str, where: str) -> None:
  """Raises ValueError where a flag is given that means nothing."""
  if flags.FLAGS[name].present:
    raise ValueError(f"--{name} means nothing {where}.")


def shorten(values) -> None:
  """Makes a configuration that of --smoke: a few steps only."""
  values.train.num_steps = 20
  values.train.eval_every = 20


def local_folder(flag: str, path: str) -> pathlib.Path:
  """Returns a flag's folder; raises ValueError for one in a bucket."""
  if files.is_remote(path):
    raise ValueError(f"--{flag}={path} must be a local folder.")
  return pathlib.Path(path)


@contextlib.contextmanager
def progress(total: int | None = None) -> Iterator[Callable[[int], None]]:
  """Yields what shows how many tokens were read: a bar on a terminal, a line now
  and then elsewhere.

  Args:
    total: tokens that there are, if that is known.
  """
  if sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
    import tqdm  # pylint: disable=g-import-not-at-top

    with tqdm.tqdm(total=total, unit="token", unit_scale=True) as bar:
      yield lambda count: bar.update(count - bar.n)
    return
  said = time.monotonic()

  def say(count: int) -> None:
    nonlocal said
    if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
      said = time.monotonic()
      of = f" of {total:,}" if total else ""
      print(f"{count:,}{of} tokens", file=sys.stderr, flush=True)

  yield say


def module(name: str) -> str:
  """Returns an experiment's module, in a checkout or in an installed wheel."""
  return f"{__package__}.{name}"


@contextlib.contextmanager
def clean_errors(*types: type[Exception]):
  """Ends with the message alone, without a traceback, on a user's error."""
  try:
    with command_line.clean_errors(ImportError, OSError, *types):
      yield
  except SystemExit:
    if jax.distributed.is_initialized():
      # At a normal exit JAX would wait for the other processes, which wait for
      # this one.
      sys.stdout.flush()
      os._exit(1)
    raise
