# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The page that shows, token by token, what a model's memories do.

One HTML file that needs nothing else. Its address keeps what is looked at:
`page.html#measure=forget&block=0&token=17`.
"""

from __future__ import annotations

import html
import json
import re
from typing import Sequence

import numpy as np

from titans_jax.evaluation import inspection

# Name, heading, unit, and explanation of what the text can be coloured by.
_MEASURES = (
    (
        "surprise",
        "surprise",
        "per channel",
        "The memory's recall loss at the token, before it is written: how little"
        " the memory expected it.",
    ),
    (
        "learning_rate",
        "learning rate",
        "theta",
        "How strongly the token is written.",
    ),
    (
        "forget",
        "forgetting",
        "alpha",
        "The share of the memory's weights that the token forgets.",
    ),
    (
        "momentum",
        "momentum",
        "eta",
        "The share of the surprise before it that goes on to be written.",
    ),
    (
        "weight_norm",
        "size of the memory",
        "norm of a head's W",
        "The weights' norm at the start of the chunk that is open.",
    ),
    (
        "contribution",
        "what learning added",
        "nats",
        "By how much the token became more likely (blue) or less likely (red)"
        " because the memories learned from the text before it, instead of"
        " staying what they are in front of it.",
    ),
    (
        "loss",
        "loss",
        "nats",
        "-log p of the token, given all before it.",
    ),
)


def page(
    title: str,
    about: Sequence[tuple[str, str]],
    pieces: Sequence[str],
    trace: inspection.Trace,
) -> str:
  """Returns the page.

  Args:
    title: heading.
    about: names and values that describe the checkpoint.
    pieces: the tokens' texts.
    trace: what was seen at them.
  """
  data = {
      "pieces": list(pieces),
      "blocks": trace.surprise.shape[1],
      "measures": [
          {
              "name": name,
              "heading": heading,
              "unit": unit,
              "about": explanation,
              # Blocks first; of the whole model there is one.
              "values": _rounded(np.atleast_2d(getattr(trace, name).T)),
          }
          for name, heading, unit, explanation in _MEASURES
      ],
  }
  rows = "".join(
      f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
      for name, value in about
  )
  content = {
      "TITLE": html.escape(title),
      "ABOUT": rows,
      # Nothing in a text may end the script element.
      "DATA": json.dumps(data).replace("<", "\\u003c"),
  }
  # In one pass: what is put in may look like a place.
  return re.sub("@([A-Z]+)@", lambda place: content[place[1]], _TEMPLATE)


def _rounded(values: np.ndarray) -> list[list[float | None]]:
  """Returns rows of numbers with five digits; what is not finite as None."""
  return [
      [float(f"{x:.5g}") if np.isfinite(x) else None for x in row]
      for row in values
  ]


_TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --ink: #1c2026; --paper: #fdfdfc;
  --soft: #6b7280; --line: #d9dce1; --panel: #f3f4f6; --hue: 232 120 30; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec;
  --paper: #15181c; --soft: #9aa2ad; --line: #343a42; --panel: #1f242a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 62rem; margin: 2rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.35rem; margin: 0 0 .6rem; }
table { border-collapse: collapse; font-size: .85rem; }
th { text-align: left; font-weight: 500; color: var(--soft);
  padding: .05rem 1.4rem .05rem 0; }
details { margin-bottom: 1rem; }
summary { cursor: pointer; color: var(--soft); }
#controls { position: sticky; top: 0; background: var(--paper);
  padding: .5rem 0; border-bottom: 1px solid var(--line); z-index: 1; }
button, select { font: inherit; font-size: .85rem; color: inherit;
  background: var(--panel); border: 1px solid var(--line);
  border-radius: .35rem; padding: .15rem .6rem; margin: 0 .2rem .3rem 0;
  cursor: pointer; }
button[aria-pressed="true"] { background: var(--ink); color: var(--paper); }
#about-measure { font-size: .85rem; color: var(--soft); margin: .1rem 0 .4rem; }
svg { width: 100%; height: 90px; display: block; }
#line { fill: none; stroke: rgb(var(--hue)); stroke-width: 1;
  vector-effect: non-scaling-stroke; }
#axis, #mark { stroke: var(--line); vector-effect: non-scaling-stroke; }
#mark { stroke: var(--ink); }
#scale { display: flex; justify-content: space-between; font-size: .75rem;
  color: var(--soft); }
#text { font: 15px/1.9 ui-monospace, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 1rem 0 6rem; }
#text span { border-radius: .15rem; padding: .12rem 0; cursor: pointer; }
#text span.here { outline: 2px solid var(--ink); }
#text span:empty::before { content: "\\00b7"; color: var(--soft); }
#token { position: fixed; bottom: 0; left: 0; right: 0;
  background: var(--panel); border-top: 1px solid var(--line);
  padding: .5rem 1.2rem; font-size: .85rem; display: flex; flex-wrap: wrap;
  gap: .1rem 1.4rem; }
#token b { font-weight: 600; }
</style>
</head>
<body>
<h1>@TITLE@</h1>
<details><summary>The checkpoint</summary><table>@ABOUT@</table></details>
<div id="controls">
<div id="measures" role="group" aria-label="Colour the text by"></div>
<label>block <select id="block"></select></label>
<p id="about-measure"></p>
<svg id="chart" preserveAspectRatio="none" role="img">
<line id="axis"/><path id="line"/><line id="mark"/></svg>
<div id="scale"><span id="least"></span><span id="most"></span></div>
</div>
<div id="text"></div>
<div id="token" aria-live="polite">Point at a token.</div>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = id => document.getElementById(id);
const count = data.pieces.length;
const show = { measure: "surprise", block: "mean", token: null };
for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
  if (key in show) show[key] = value;
}
if (!data.measures.some(m => m.name === show.measure)) {
  show.measure = "surprise";
}
const index = (text, size) => /^\\d+$/.test(text) && Number(text) < size;
if (!index(show.block, data.blocks)) show.block = "mean";
if (!index(show.token, count)) show.token = null;

function at(measure, t) {
  const rows = measure.values;
  if (rows.length === 1) return rows[0][t];
  if (show.block !== "mean") return rows[show.block][t];
  return rows.some(row => row[t] === null) ? null :
    rows.reduce((sum, row) => sum + row[t], 0) / rows.length;
}
const digits = x => x === null ? "not finite" : Number(x.toPrecision(3));

for (const measure of data.measures) {
  const button = document.createElement("button");
  button.textContent = measure.heading;
  button.dataset.name = measure.name;
  button.onclick = () => { show.measure = measure.name; draw(); };
  get("measures").append(button);
}
for (const name of ["mean", ...Array(data.blocks).keys()]) {
  get("block").append(new Option(name, name));
}
get("block").onchange = event => { show.block = event.target.value; draw(); };

const spans = data.pieces.map((piece, t) => {
  const span = document.createElement("span");
  span.textContent = piece;
  span.onmouseenter = () => point(t);
  span.onclick = () => { show.token = t; draw(); };
  return span;
});
get("text").append(...spans);

function point(t) {
  document.querySelector("#text .here")?.classList.remove("here");
  spans[t].classList.add("here");
  for (const x of ["x1", "x2"]) get("mark").setAttribute(x, t + 0.5);
  const cells = data.measures.map(m => {
    const cell = document.createElement("span");
    const value = document.createElement("b");
    value.textContent = digits(at(m, t));
    cell.append(m.heading + " ", value);
    return cell;
  });
  const name = document.createElement("span");
  name.textContent = `token ${t}: ${JSON.stringify(data.pieces[t])}`;
  get("token").replaceChildren(name, ...cells);
}

function draw() {
  const measure = data.measures.find(m => m.name === show.measure);
  const values = data.pieces.map((_, t) => at(measure, t));
  const finite = values.filter(x => x !== null).sort((a, b) => a - b);
  const least = finite[0] ?? 0, most = finite.at(-1) ?? 1;
  const signed = measure.name === "contribution";
  const low = signed ? 0 : least;
  const reach = Math.max(most - low, signed ? low - least : 0) || 1;
  const color = x => {
    if (x === null) return "magenta";
    // A root: few tokens stand out, and the others are seen all the same.
    const depth = 0.8 * Math.sqrt(Math.abs(x - low) / reach);
    const hue = !signed ? "232 120 30" : x > 0 ? "50 120 235" : "225 50 50";
    return `rgb(${hue} / ${depth.toFixed(3)})`;
  };
  spans.forEach((span, t) => { span.style.background = color(values[t]); });
  for (const button of get("measures").children) {
    button.setAttribute("aria-pressed", button.dataset.name === show.measure);
  }
  get("block").value = show.block;
  get("block").disabled = measure.values.length === 1;
  get("about-measure").textContent = measure.about;
  const bottom = signed ? Math.min(least, 0) : least;
  const height = most - bottom || 1;
  const y = x => 88 - 86 * (x - bottom) / height;
  get("chart").setAttribute("viewBox", `0 0 ${count} 90`);
  get("line").setAttribute("d", values.map((x, t) => x === null ? "" :
    `${t && values[t - 1] !== null ? "L" : "M"}${t + 0.5} ${y(x).toFixed(2)}`
  ).join(""));
  const zero = signed ? y(0) : 88;
  for (const [name, value] of
      [["x1", 0], ["x2", count], ["y1", zero], ["y2", zero]]) {
    get("axis").setAttribute(name, value);
  }
  for (const [name, value] of [["y1", 0], ["y2", 90]]) {
    get("mark").setAttribute(name, value);
  }
  get("least").textContent =
    `${digits(least)} to ${digits(most)} ${measure.unit}`;
  get("most").textContent = `${count} tokens`;
  if (show.token !== null) point(Number(show.token));
  const parts = Object.entries(show).filter(([, value]) => value !== null);
  history.replaceState(null, "", "#" + new URLSearchParams(parts));
}
get("chart").onmousemove = event => {
  const box = get("chart").getBoundingClientRect();
  const t = Math.floor(count * (event.clientX - box.left) / box.width);
  point(Math.min(Math.max(t, 0), count - 1));
};
draw();
if (show.token !== null) {
  spans[show.token].scrollIntoView({ block: "center" });
}
</script>
</body>
</html>
"""
