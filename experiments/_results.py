# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""results.json: what an experiment has measured so far."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np

from titans_jax import files
from titans_jax.models import config as model_config
from titans_jax.training import config as config_lib
from titans_jax.training import trainer

from . import _flags


class Table(NamedTuple):
  """What was found, for people to read.

  Attributes:
    title: a line.
    columns: their heads; the first is that of the rows' names.
    rows: names and cells, as text.
  """

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[str]]

  def __str__(self) -> str:
    lines = [list(self.columns), *map(list, self.rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    text = [self.title]
    for name, *cells in lines:
      aligned = (f"{c:>{w}}" for c, w in zip(cells, widths[1:]))
      text.append("  ".join([f"{name:<{widths[0]}}", *aligned]))
    return "\n".join(text)


def by_length(
    title: str,
    models: dict[str, dict[str, Any]],
    cell: Callable[[Any], str],
) -> Table:
  """Returns a table with a column for every length.

  Args:
    title: of the table.
    models: what was found, by model and length.
    cell: of one model and length.
  """
  lengths = sorted({int(n) for found in models.values() for n in found})
  rows = []
  for name, found in models.items():
    cells = (cell(found[str(n)]) if str(n) in found else "" for n in lengths)
    rows.append([name, *cells])
  return Table(title, ["", *(f"{n:,}" for n in lengths)], rows)


def add_seed(
    seeds: dict[str, float | None],
    seed: int,
    measure: Callable[[], float | None],
) -> bool:
  """Adds what a seed's training gives, None if it diverges.

  Args:
    seeds: what is known, by seed.
    seed: the one to train.
    measure: trains and measures; None if it was stopped by SIGTERM.

  Returns:
    False if it was stopped.
  """
  try:
    value = measure()
  except trainer.NonFiniteLossError as error:
    print(f"Diverged: {error}")
    seeds[str(seed)] = None
    return True
  if value is not None:
    seeds[str(seed)] = value
  return value is not None


def finite(seeds: dict[str, float | None]) -> list[float]:
  """Returns the values of the seeds that did not diverge."""
  return [value for value in seeds.values() if value is not None]


def over_seeds(seeds: dict[str, float | None]) -> str:
  """Returns mean and deviation, and how many diverged, as a cell."""
  values = finite(seeds)
  cells = [f"{np.mean(values):.3f} +- {np.std(values):.3f}"] if values else []
  if diverged := len(seeds) - len(values):
    cells.append(f"({diverged} diverged)")
  return " ".join(cells)


def label_lengths(axes, unit: str) -> None:
  """Makes a plot one over tokens of a sequence, doubling from mark to mark.

  Args:
    axes: of matplotlib.
    unit: of what stands over them.
  """
  axes.set_xscale("log", base=2)
  axes.set_xlabel("tokens of a sequence")
  axes.set_ylabel(unit)
  axes.grid(alpha=0.3)


class Results:
  """The results of one experiment, all taken in the same settings.

  Attributes:
    workdir: the folder that holds results.json.
    settings: what they were taken in.
    models: what was found, by the model's name.
  """

  def __init__(
      self,
      workdir: str,
      experiment: str,
      settings: dict[str, Any],
      make_tables: Callable[[dict[str, Any]], list[Table]],
      paper: dict[str, Any] | None = None,
  ):
    """Makes the workdir, and reads what an earlier call measured.

    Args:
      workdir: value of --workdir.
      experiment: its name.
      settings: plain values, that every row has in common.
      make_tables: of `models`, and of the paper's numbers.
      paper: numbers to stand beside.

    Raises:
      ValueError: it was another experiment, or measured in other settings; or
        results.json cannot be read.
    """
    self.workdir: pathlib.Path = _flags.local_folder("workdir", workdir)
    self._path = self.workdir / "results.json"
    self.settings = json.loads(json.dumps(settings))
    self.models: dict[str, dict[str, Any]] = {}
    self._experiment = experiment
    self._make_tables = make_tables
    self._paper = paper
    if self._path.exists():
      self._read()
    self.workdir.mkdir(parents=True, exist_ok=True)

  def _read(self) -> None:
    try:
      before = json.loads(self._path.read_text())
    except ValueError as error:
      raise ValueError(
          f"{self._path} is not readable as JSON: {error}."
      ) from error
    if before.get("experiment") != self._experiment:
      raise ValueError(
          f"{self._path} is not of experiments.{self._experiment}: give another"
          " --workdir."
      )
    old, new = _flat(before["settings"]), _flat(self.settings)
    for name in new:
      old.setdefault(name, _default(name))
    changed = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
    ]
    if changed:
      raise ValueError(
          f"{self._path} was measured otherwise: {'; '.join(changed)}. Give"
          " another --workdir, or remove the file."
      )
    self.models = before["models"]

  def write(self) -> None:
    """Writes results.json."""
    fields = {
        "experiment": self._experiment,
        "settings": self.settings,
        "models": self.models,
        "tables": [t._asdict() for t in self._make_tables(self.models)],
    }
    if self._paper is not None:
      fields["paper"] = self._paper
    files.replace(self._path, json.dumps(fields, indent=1))

  def print_tables(self) -> None:
    """Prints what was found, and where it is."""
    for table in self._make_tables(self.models):
      print(f"\n{table}")
    plots = sorted(path.name for path in self.workdir.glob("*.png"))
    print(f"\nIn {self.workdir}: {', '.join(['results.json', *plots])}")


def config_settings(values, *skipped: str) -> dict[str, Any]:
  """Returns the fields of a --config that results depend on, by their paths.

  Args:
    values: of --config.
    *skipped: paths of fields that differ between the runs of one call.
  """
  free = {".".join(path) for path in config_lib.FREE} | set(skipped)
  return {
      f"config.{path}": value
      for path, value in _flat(values.to_dict()).items()
      if path not in free and path.split(".")[0] not in free
  }


def _default(path: str) -> Any:
  """Returns what a field was before there was such a field: its default."""
  *_, section, name = ["", *path.split(".")]
  sections = {
      "model": model_config.TitansConfig,
      "optimizer": config_lib.OptimizerConfig,
      "train": config_lib.TrainConfig,
  }
  return getattr(sections.get(section), name, None)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns nested dictionaries as one, with paths for names."""
  flat: dict[str, Any] = {}
  for name, value in values.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat
