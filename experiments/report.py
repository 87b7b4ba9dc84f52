# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One report of all results: tables and plots, beside the paper's numbers.

    python -m experiments.report --results=runs --output=runs/report

Looks for results.json in a folder and all below it, and writes OUTPUT.md, which
links to the plots beside the results, and OUTPUT.html, which holds them.
"""

from __future__ import annotations

import base64
import html
import json
import os
import pathlib
from typing import Any, NamedTuple

from absl import app
from absl import flags

from titans_jax import files

from . import _flags
from . import _results

_RESULTS = flags.DEFINE_string(
    "results", None, "Folder with results.json below it.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The report, without .md and .html.", required=True
)

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
    "caption{text-align:left;font-weight:bold}"
    "img{max-width:100%}summary{cursor:pointer}"
)


class _Section(NamedTuple):
  """The results of one folder."""

  title: str
  folder: pathlib.Path
  settings: dict[str, Any]
  tables: list[_results.Table]
  plots: list[pathlib.Path]


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors():
    folder = _flags.local_folder("results", _RESULTS.value)
    if not folder.is_dir():
      raise ValueError(f"--results={folder} is no folder.")
    output = _flags.local_folder("output", _OUTPUT.value)
    if not output.parent.is_dir():
      raise ValueError(
          f"--output={output}: there is no folder {output.parent}."
      )
    sections = []
    for path in sorted(folder.rglob("results.json")):
      section = _read(path)
      if section is None:
        print(f"Left out, without tables: {path}")
      else:
        sections.append(section)
    if not sections:
      raise ValueError(f"--results={folder} holds no results.json with tables.")
    for suffix, write in ((".md", _markdown), (".html", _html)):
      path = output.with_name(output.name + suffix)
      files.replace(path, write(sections, path.parent))
      print(f"{len(sections)} experiments: {path}")


def _read(path: pathlib.Path) -> _Section | None:
  """Returns what a file holds; None if it is another program's."""
  try:
    fields = json.loads(path.read_text())
    return _Section(
        title=fields["experiment"],
        folder=path.parent,
        settings=fields["settings"],
        tables=[_results.Table(**table) for table in fields["tables"]],
        plots=sorted(path.parent.glob("*.png")),
    )
  except (ValueError, KeyError, TypeError):
    return None


def _markdown(sections: list[_Section], where: pathlib.Path) -> str:
  lines = ["# Results"]
  for section in sections:
    lines += ["", f"## {section.title}", "", f"`{section.folder}`"]
    for table in section.tables:
      lines += ["", table.title, ""]
      rows = [list(table.columns), ["---"] * len(table.columns), *table.rows]
      lines += [
          "| " + " | ".join(c.replace("|", r"\|") for c in row) + " |"
          for row in rows
      ]
    for plot in section.plots:
      link = os.path.relpath(plot, where).replace(" ", "%20")
      lines += ["", f"![{plot.stem}]({link})"]
    settings = (f"{k}={v!r}" for k, v in section.settings.items())
    lines += ["", f"Settings: `{', '.join(settings)}`"]
  return "\n".join(lines) + "\n"


def _html(sections: list[_Section], where: pathlib.Path) -> str:
  del where  # the plots are in the file
  parts = [
      "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>",
      f"<title>Results</title><style>{_STYLE}</style></head><body>",
      "<h1>Results</h1>",
  ]
  for section in sections:
    parts.append(f"<h2>{html.escape(section.title)}</h2>")
    parts.append(f"<p><code>{html.escape(str(section.folder))}</code></p>")
    for table in section.tables:
      parts.append(f"<table><caption>{html.escape(table.title)}</caption>")
      for kind, rows in (("th", [table.columns]), ("td", table.rows)):
        for row in rows:
          cells = (f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row)
          parts.append(f"<tr>{''.join(cells)}</tr>")
      parts.append("</table>")
    for plot in section.plots:
      data = base64.b64encode(plot.read_bytes()).decode()
      parts.append(
          f"<p><img alt='{html.escape(plot.stem)}'"
          f" src='data:image/png;base64,{data}'></p>"
      )
    settings = "\n".join(f"{k} = {v!r}" for k, v in section.settings.items())
    parts.append(
        f"<details><summary>Settings</summary><pre>{html.escape(settings)}</pre>"
        "</details>"
    )
  return "\n".join([*parts, "</body></html>"]) + "\n"


if __name__ == "__main__":
  app.run(main)
