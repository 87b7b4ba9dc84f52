# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Multivariate time series from CSV files, as the forecasting literature has them.

The first column (`date`) is a time stamp, every other one a channel. Rows are
split in time into training, validation and test; all are scaled by mean and
deviation of the training rows.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import hashlib
import os
import pathlib
import re

import numpy as np

SPLITS = ("train", "val", "test")

# Rows of the ETT data sets: 12, 4 and 4 months of 30 days, the rest is not used.
_ETT = re.compile(r"ETT([hm])\d", re.IGNORECASE)
_ETT_DAYS = (360, 120, 120)
_SHARES = (0.7, 0.1, 0.2)

_DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Series:
  """A data set.

  Attributes:
    values: scaled, float32 [rows, channels].
    channels: their names.
    mean: of the training rows before scaling, float64 [channels].
    deviation: the same; 1 where a channel is constant.
    phase: where in its period a row stands, int32 [rows].
    period: steps of the calendar's shortest cycle that has two or more: a day's, a
      week's or a year's.
    bounds: first row and the row behind the last, of every split.
    fingerprint: equal exactly for equal data.
  """

  values: np.ndarray
  channels: tuple[str, ...]
  mean: np.ndarray
  deviation: np.ndarray
  phase: np.ndarray
  period: int
  bounds: dict[str, tuple[int, int]]
  fingerprint: str

  def starts(self, split: str, look_back: int, horizon: int) -> np.ndarray:
    """Returns the first rows of a split's windows.

    A window is `look_back` rows and the `horizon` behind them. Those of
    validation and test look back into the split before; what is forecast lies in
    the split.

    Raises:
      ValueError: the split is too short for a window.
    """
    first, end = self.bounds[split]
    if split != "train":
      first -= look_back
    count = end - first - look_back - horizon + 1
    if first < 0 or count < 1:
      raise ValueError(
          f"The {split} split has {self.bounds[split][1] - self.bounds[split][0]}"
          f" rows: too few for a look-back of {look_back} and a horizon of"
          f" {horizon}."
      )
    return np.arange(first, first + count)


def read(path: str | os.PathLike[str], flag: str = "--csv") -> Series:
  """Reads a CSV file with a header, dates in the first column.

  Files named ETTh1, ETTm2 and so on are split as in the literature, all others
  7 : 1 : 2. A constant channel is scaled to zero.

  Args:
    path: of the file.
    flag: the flag that names it, for messages.

  Raises:
    ValueError: no such file, no channels, a value that is missing or no number,
      or dates that do not ascend.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"{flag}={path} is no file.")
  with path.open(newline="", encoding="utf-8-sig") as file:
    reader = csv.reader(file)
    lines = [(reader.line_num, row) for row in reader if row]
  if len(lines) < 3 or len(lines[0][1]) < 2:
    raise ValueError(
        f"{flag}={path}: expected a header, and rows of a date and at least one"
        " value."
    )
  (_, header), *lines = lines
  dates: list[datetime.datetime] = []
  values = np.empty((len(lines), len(header) - 1))
  for i, (line, row) in enumerate(lines):
    where = f"{flag}={path}, line {line}"
    date = _date(row[0], where)
    if dates and date <= dates[-1]:
      kind = "is also that of" if date == dates[-1] else "stands before that of"
      raise ValueError(
          f"{where}: the date {row[0]!r} {kind} the line before: sort the rows,"
          " one for every date."
      )
    dates.append(date)
    if len(row) != len(header):
      raise ValueError(
          f"{where}: {len(row)} fields, but the header has {len(header)}."
      )
    for column, cell in enumerate(row[1:]):
      values[i, column] = _number(
          cell, f"{where}, column {header[column + 1]!r}"
      )
  seconds = np.array([date.timestamp() for date in dates])
  step = float(np.median(np.diff(seconds)))
  period, phase = _calendar(dates, seconds, step)
  bounds = _bounds(path.stem, len(values), step)
  first, end = bounds["train"]
  mean = values[first:end].mean(axis=0)
  deviation = values[first:end].std(axis=0)
  deviation = np.where(deviation > 0, deviation, 1.0)
  scaled = ((values - mean) / deviation).astype(np.float32)
  digest = hashlib.sha256(scaled.tobytes() + phase.tobytes())
  digest.update(repr((bounds, period)).encode())
  return Series(
      values=scaled,
      channels=tuple(header[1:]),
      mean=mean,
      deviation=deviation,
      phase=phase.astype(np.int32),
      period=period,
      bounds=bounds,
      fingerprint=digest.hexdigest()[:16],
  )


def _date(text: str, where: str) -> datetime.datetime:
  """Returns a date; one without an offset is UTC, whatever the machine's zone."""
  for form in (None, "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d"):
    try:
      if form is None:
        date = datetime.datetime.fromisoformat(text.strip())
      else:
        date = datetime.datetime.strptime(text.strip(), form)
    except ValueError:
      continue
    if date.tzinfo is None:
      date = date.replace(tzinfo=datetime.UTC)
    return date
  raise ValueError(f"{where}: {text!r} is no date, as 2016-07-01 00:00:00 is.")


def _number(cell: str, where: str) -> float:
  if not cell.strip():
    raise ValueError(f"{where}: a value is missing. Fill or drop such rows.")
  try:
    value = float(cell)
  except ValueError:
    value = np.nan
  if not np.isfinite(value):
    raise ValueError(f"{where}: {cell!r} is no finite number.")
  return value


def _calendar(dates, seconds, step: float) -> tuple[int, np.ndarray]:
  """Returns the period, and where in it every row stands."""
  if 28 * _DAY <= step <= 31 * _DAY:  # Months are of several lengths.
    return 12, np.array([date.month - 1 for date in dates])
  period = 1
  for cycle in (_DAY, 7 * _DAY, 365.25 * _DAY):
    if cycle / step >= 2:
      period = round(cycle / step)
      break
  return period, np.round((seconds - seconds[0]) / step).astype(int) % period


def _bounds(name: str, rows: int, step: float) -> dict[str, tuple[int, int]]:
  """Returns where the splits lie."""
  sizes = [int(_SHARES[0] * rows), 0, int(_SHARES[2] * rows)]
  sizes[1] = rows - sizes[0] - sizes[2]
  if _ETT.fullmatch(name):
    sizes = [round(days * _DAY / step) for days in _ETT_DAYS]
    if sum(sizes) > rows:
      raise ValueError(
          f"{name} has {rows} rows, but its splits take {sum(sizes)}: give"
          " another file another name."
      )
  ends = np.cumsum([0, *sizes])
  return {
      split: (int(ends[i]), int(ends[i + 1])) for i, split in enumerate(SPLITS)
  }
