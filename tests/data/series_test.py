# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Time series from CSV files: splits, scaling, calendar, and files that are wrong."""

import datetime
import pathlib

from absl.testing import parameterized
import numpy as np

from titans_jax.data import series


def write(path, values, *, minutes=60, names=None):
  """Writes a CSV file of values [rows, channels], and returns its path."""
  names = names or [f"c{i}" for i in range(values.shape[1])]
  start = datetime.datetime(2020, 1, 1, 5)
  lines = [",".join(["date", *names])]
  for i, row in enumerate(values):
    date = start + datetime.timedelta(minutes=minutes * i)
    lines.append(",".join([str(date), *map(repr, map(float, row))]))
  pathlib.Path(path).write_text("\n".join(lines) + "\n")
  return path


class SeriesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    rng = np.random.default_rng(0)
    self.values = rng.normal(3.0, 2.0, size=(200, 2))

  def test_split_and_scaled_by_the_training_rows(self):
    found = series.read(write(self.folder / "a.csv", self.values))
    self.assertEqual(
        found.bounds, {"train": (0, 140), "val": (140, 160), "test": (160, 200)}
    )
    train = self.values[:140]
    np.testing.assert_allclose(
        found.values,
        (self.values - train.mean(0)) / train.std(0),
        rtol=1e-6,
        atol=1e-6,
    )
    self.assertEqual(found.channels, ("c0", "c1"))
    # Windows look back into the split before; their future lies in the split.
    np.testing.assert_array_equal(
        found.starts("test", 10, 5), np.arange(150, 186)
    )
    np.testing.assert_array_equal(found.starts("train", 10, 5)[-1], 125)

  @parameterized.parameters(
      (60, 24), (15, 96), (24 * 60, 7), (7 * 24 * 60, 52), (6 * 60, 4)
  )
  def test_the_calendar_gives_the_period(self, minutes, period):
    path = write(self.folder / "a.csv", self.values, minutes=minutes)
    found = series.read(path)
    self.assertEqual(found.period, period)
    np.testing.assert_array_equal(found.phase, np.arange(200) % period)

  def test_a_gap_in_the_dates_keeps_the_hour(self):
    path = write(self.folder / "a.csv", self.values)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:31] + lines[41:]) + "\n")
    phase = series.read(path).phase
    np.testing.assert_array_equal(phase[29:31], [29 % 24, 40 % 24])

  def test_months_are_of_several_lengths(self):
    lines = ["date,a"]
    for i in range(40):
      lines.append(f"{2000 + i // 12}-{i % 12 + 1:02d}-01,{i % 7}")
    path = self.folder / "months.csv"
    path.write_text("\n\n".join(lines) + "\n")  # empty lines are none
    found = series.read(path)
    self.assertEqual(found.period, 12)
    np.testing.assert_array_equal(found.phase, np.arange(40) % 12)

  def test_the_split_is_in_the_fingerprint(self):
    found = [
        series.read(write(self.folder / name, np.zeros((20 * 30 * 24, 1))))
        for name in ("ETTh1.csv", "mine.csv")
    ]
    self.assertNotEqual(found[0].fingerprint, found[1].fingerprint)

  def test_ett_is_split_by_months(self):
    rows = 20 * 30 * 24 + 5
    path = write(self.folder / "ETTh9.csv", np.zeros((rows, 1)))
    bounds = series.read(path).bounds
    self.assertEqual(bounds["train"], (0, 8640))
    self.assertEqual(bounds["test"], (11520, 14400))
    path = write(self.folder / "ETTm1.csv", self.values, minutes=15)
    with self.assertRaisesRegex(ValueError, "200 rows, but its splits take"):
      series.read(path)

  def test_a_constant_channel_is_zero(self):
    self.values[:, 1] = 7.0
    found = series.read(write(self.folder / "a.csv", self.values))
    np.testing.assert_array_equal(found.values[:, 1], 0)
    self.assertEqual(found.deviation[1], 1)

  @parameterized.parameters(
      ("4,,x", "expected a header"),
      (
          "date,a\n2020-01-01,1\n2020-01-02,",
          "line 3, column 'a': a value is miss",
      ),
      ("date,a\n2020-01-01,1\n2020-01-02,nan", "'nan' is no finite number"),
      ("date,a\n2020-01-01,1\n2020-01-02,ten", "'ten' is no finite number"),
      (
          "date,a\n2020-01-01,1\n2020-01-02,1,2",
          "line 3: 3 fields, but the head",
      ),
      ("date,a\n2020-01-01,1\nmonday,2", "line 3: 'monday' is no date"),
      (
          "date,a\n2020-01-01,1\n2020-01-01,2",
          "line 3: .* is also that of the line",
      ),
      (
          "date,a\n2020-01-02,1\n2020-01-01,2",
          "line 3: .* stands before that of",
      ),
  )
  def test_bad_files(self, text, message):
    path = self.folder / "bad.csv"
    path.write_text(text)
    with self.assertRaisesRegex(ValueError, message):
      series.read(path)

  def test_no_file_and_too_few_rows(self):
    with self.assertRaisesRegex(ValueError, "--csv=/nowhere is no file"):
      series.read("/nowhere")
    found = series.read(write(self.folder / "a.csv", self.values))
    with self.assertRaisesRegex(ValueError, "val split has 20 rows: too few"):
      found.starts("val", 96, 24)
