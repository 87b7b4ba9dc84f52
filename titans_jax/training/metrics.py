# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics, written as they come: `metrics.jsonl`, TensorBoard, Weights & Biases, a
learning curve."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any
import uuid

import numpy as np

from titans_jax import files
from titans_jax.parallel import distributed

# The file that names a workdir's run of Weights & Biases.
WANDB_RUN = "wandb_run"


class MetricWriter:
  """Writes rows of scalars by step.

  A run that resumes drops the rows past the step it resumes from, so that the
  file is that of a run that was never stopped.
  """

  def __init__(
      self,
      workdir: str | os.PathLike[str],
      *,
      resume_step: int = 0,
      wandb: dict[str, Any] | None = None,
  ):
    """Opens the files.

    Args:
      workdir: local folder.
      resume_step: rows past it are dropped.
      wandb: arguments of `wandb.init`: the rows go to Weights & Biases too. What
        is there already stays: it passes over steps that it has.

    Raises:
      ImportError: without the extra `train`, or `wandb`.
      OSError: Weights & Biases cannot be reached.
    """
    try:
      import tensorboardX  # pylint: disable=g-import-not-at-top
    except ImportError as error:
      raise ImportError(
          "Training needs the extra 'train': pip install 'titans-jax[train]'."
      ) from error
    workdir = pathlib.Path(workdir)
    self._wandb = None
    if wandb is not None:
      self._wandb = _start_wandb(workdir, wandb)
    self.path = workdir / "metrics.jsonl"
    rows = [row for row in read_metrics(workdir) if row["step"] <= resume_step]
    files.replace(self.path, "".join(json.dumps(row) + "\n" for row in rows))
    self._file = self.path.open("a")
    self._board = tensorboardX.SummaryWriter(
        str(workdir), purge_step=resume_step + 1
    )

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes one row; not-a-number and infinity are written as null."""
    row = {
        name: float(value) if np.isfinite(value) else None
        for name, value in values.items()
    }
    self._file.write(json.dumps({"step": step} | row) + "\n")
    self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    if self._wandb is not None:
      self._wandb.log(values, step=step)

  def flush(self) -> None:
    """Hands what was written to the operating system."""
    self._board.flush()

  def close(self) -> None:
    """Ends the files; a second call does nothing."""
    self._file.close()
    self._board.close()
    if self._wandb is not None:
      failed = sys.exc_info()[0] is not None
      self._wandb.finish(exit_code=int(failed))
      self._wandb = None


class _NoWriter:
  """Of a process that leaves writing to another."""

  def write(self, step: int, values: dict[str, float]) -> None:
    pass

  def flush(self) -> None:
    pass

  def close(self) -> None:
    pass


def make_writer(
    workdir: str | os.PathLike[str], **options: Any
) -> MetricWriter | _NoWriter:
  """Returns the writer of a run, of which process 0 alone writes.

  Args:
    workdir: local folder.
    **options: of `MetricWriter`.
  """
  if not distributed.is_main():
    return _NoWriter()
  return MetricWriter(workdir, **options)


def _start_wandb(workdir: pathlib.Path, arguments: dict[str, Any]):
  """Starts a run of Weights & Biases, or goes on with the workdir's."""
  try:
    import wandb  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ImportError(
        "train.wandb_project needs the extra 'wandb': pip install"
        " 'titans-jax[wandb]'."
    ) from error
  path = workdir / WANDB_RUN
  if not path.exists():
    files.replace(path, uuid.uuid4().hex)
  try:
    return wandb.init(id=path.read_text(), resume="allow", **arguments)
  except wandb.errors.Error as error:
    raise OSError(
        f"train.wandb_project={arguments['project']}: {error}"
        " (WANDB_MODE=offline writes files, for `wandb sync`.)"
    ) from error


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the whole rows of a workdir's `metrics.jsonl`, oldest first."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:  # a row that a kill cut off
      break
  return rows


def make_pyplot():
  """Returns matplotlib's pyplot, set to write files: nothing is shown."""
  import matplotlib  # pylint: disable=g-import-not-at-top

  matplotlib.use("Agg")
  from matplotlib import pyplot  # pylint: disable=g-import-not-at-top

  return pyplot


def plot_learning_curve(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Draws `learning_curve.png` from a workdir's metrics and returns its path."""
  pyplot = make_pyplot()
  rows = read_metrics(workdir)
  figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
  for name, label, style in (
      ("loss", "training", {"linewidth": 0.8, "alpha": 0.7}),
      ("eval_loss", "held out", {"marker": "o", "markersize": 3}),
  ):
    points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
    if points:
      axes.plot(*zip(*points), label=label, **style)
  axes.set_xlabel("step")
  axes.set_ylabel("loss (nats per token)")
  axes.grid(alpha=0.3)
  if axes.get_legend_handles_labels()[0]:
    axes.legend()
  path = pathlib.Path(workdir) / "learning_curve.png"
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
  return path


def flatten(metrics: dict[str, Any]) -> dict[str, float]:
  """Returns a train step's metrics as scalars with names.

  A block's gauges become `memory/NAME/layer_00` and so on.
  """
  metrics = dict(metrics)
  gauges = metrics.pop("memory", None)
  row = {name: float(value) for name, value in metrics.items()}
  if gauges is not None:
    for name, values in gauges._asdict().items():
      for layer, value in enumerate(np.asarray(values)):
        row[f"memory/{name}/layer_{layer:02d}"] = float(value)
  return row
