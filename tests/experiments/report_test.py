# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The report of several experiments' results."""

import base64
import html.parser
import json

from absl.testing import parameterized

from tests.experiments import processes

# The smallest picture there is.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8A"
    "AAAASUVORK5CYII="
)


class Tags(html.parser.HTMLParser):
  """Collects what a page holds, and checks that it closes what it opens."""

  def __init__(self):
    super().__init__()
    self.open, self.cells, self.images = [], [], []

  def handle_starttag(self, tag, attrs):
    if tag == "img":
      self.images.append(dict(attrs)["src"])
    elif tag != "meta":
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ("td", "th"):
      self.cells.append(data)


class ReportTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = processes.folder(type(self)) / self._testMethodName
    for name in ("recall", "deeper/forecast"):
      folder = self.folder / name
      folder.mkdir(parents=True)
      fields = {
          "experiment": folder.name,
          "settings": {"seeds": 3},
          "models": {},
          "tables": [
              {
                  "title": "Errors <by> horizon:",
                  "columns": ["", "96"],
                  "rows": [["titans & co", "0.42"]],
              }
          ],
      }
      (folder / "results.json").write_text(json.dumps(fields))
    (self.folder / "recall" / "a plot.png").write_bytes(PNG)

  def report(self, output="report"):
    return processes.run(
        "report",
        f"--results={self.folder}",
        f"--output={self.folder / output}",
    )

  def test_all_results_are_in_it(self):
    process = self.report()
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertIn("2 experiments", process.stdout)
    text = (self.folder / "report.md").read_text()
    self.assertIn("## recall", text)
    self.assertIn("## forecast", text)
    self.assertIn("| titans & co | 0.42 |", text)
    self.assertIn("![a plot](recall/a%20plot.png)", text)
    page = Tags()
    page.feed((self.folder / "report.html").read_text())
    self.assertEmpty(page.open)
    self.assertEqual(page.cells, ["96", "titans & co", "0.42"] * 2)
    (image,) = page.images
    self.assertEqual(base64.b64decode(image.split(",")[1]), PNG)

  def test_bad_input(self):
    other = self.folder / "other"
    other.mkdir()
    processes.assert_refused(
        self,
        processes.run("report", f"--results={other}", f"--output={other}/r"),
        "holds no results.json with tables",
    )
    processes.assert_refused(self, self.report("none/report"), "no folder")
    with self.subTest("of another program"):
      (other / "results.json").write_text('{"loss": 1}')
      process = self.report()
      self.assertEqual(process.returncode, 0, process.stderr)
      self.assertIn("Left out, without tables", process.stdout)
      self.assertIn("2 experiments", process.stdout)
