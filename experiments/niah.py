# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""A needle in a haystack (S-NIAH of RULER), far beyond the training length.

    python -m experiments.niah --workdir=runs/niah --haystack=essays.txt
    python -m experiments.niah --workdir=runs/niah --haystack=essays.txt \
        --checkpoint=runs/mine

Trains --variants on needles in other text, or takes the model of --checkpoint,
or trains that of --init_from further, and asks for needles at every length and
depth. Writes results.json and niah.png into the workdir, and the table, beside
the paper's. A run that was stopped goes on.
"""

from __future__ import annotations

import functools
import pathlib

from absl import app
from absl import flags
import numpy as np

from pallas_kernels import command_line
from titans_jax.evaluation import haystacks
from titans_jax.evaluation import needles
from titans_jax.training import checkpoints
from titans_jax.training import metrics
from titans_jax.training import trainer

from . import _asking
from . import _flags
from . import _paper
from . import _results

_TASKS = flags.DEFINE_list(
    "tasks", "passkey,number,word", f"Of {', '.join(needles.TASKS)}."
)
_HAYSTACK = flags.DEFINE_string(
    "haystack",
    "builtin",
    "Text that hides the needles to measure with, as data.source.",
)
_DEPTHS = flags.DEFINE_integer(
    "depths",
    5,
    "Places for the needle, from the beginning to the question.",
    lower_bound=1,
)
_CONFIG = _flags.define_config("niah.py")

# The lengths to measure at, as multiples of the training's.
_MULTIPLES = (1, 2, 4, 8, 16)


flags.adopt_module_key_flags(_asking)


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(
      checkpoints.CheckpointError, trainer.NonFiniteLossError
  ):
    _asking.check_flags()
    command_line.check_names("tasks", _TASKS.value, list(needles.TASKS))
    haystacks.check(_HAYSTACK.value, "--haystack")
    depths = _DEPTHS.value
    samples = depths if _asking.SMOKE.value else _asking.SAMPLES.value
    if samples % depths:
      raise ValueError(
          f"--samples={samples} is not a multiple of --depths={depths}: every"
          " depth is asked as often."
      )
    settings = {
        "haystack": _HAYSTACK.value,
        "samples": samples,
        "depths": depths,
    }
    paper = {"lengths": _paper.NEEDLE_LENGTHS, "accuracy": _paper.NEEDLES}
    results = _asking.Results("niah", settings, _tables, paper)
    if not _asking.measure_all(
        _measure,
        results,
        values=_CONFIG.value,
        data_class=needles.NeedleData,
        make_task=needles.make_task,
        prepare=_prepare,
        multiples=_MULTIPLES,
    ):
      return  # stopped by SIGTERM
  results.print_tables()


def _prepare(tokenizer, lengths: list[int]) -> needles.Needles:
  """Returns what draws the texts to measure with."""
  makes = needles.Needles(_HAYSTACK.value, tokenizer)
  makes.check(_TASKS.value, lengths[0], "--lengths")
  return makes


def _measure(subject: _asking.Subject, results: _asking.Results) -> None:
  """Asks a model for needles at every task and length not done yet."""
  accuracy = results.of(subject)
  depths = results.settings["depths"]
  for task in _TASKS.value:
    done = accuracy.setdefault(task, {})
    for length in subject.lengths:
      if str(length) in done:
        continue
      asked = [
          functools.partial(
              subject.texts.draw,
              task,
              length,
              i % depths / max(depths - 1, 1),
              _asking.rng(list(needles.TASKS).index(task), length, i),
          )
          for i in range(results.settings["samples"])
      ]
      found = _asking.ask(subject, asked)
      right = np.array([needles.is_right(*pair) for pair in found], float)
      done[str(length)] = [right[i::depths].mean() for i in range(depths)]
      print(
          f"{subject.name}, {task} at {length:,} tokens: {right.mean():.3f}",
          flush=True,
      )
      results.write()
      _plot(results.models, results.workdir / "niah.png")


def _plot(models, path: pathlib.Path) -> None:
  """Draws accuracy by length and depth, for every model and task."""
  pyplot = metrics.make_pyplot()
  tasks = [
      t
      for t in needles.TASKS
      if any(m["accuracy"].get(t) for m in models.values())
  ]
  figure, plots = pyplot.subplots(
      len(models),
      len(tasks),
      figsize=(1 + 3.2 * len(tasks), 0.8 + 2.4 * len(models)),
      squeeze=False,
      layout="constrained",
  )
  image = None
  for row, (name, model) in zip(plots, models.items()):
    for axes, task in zip(row, tasks):
      found = model["accuracy"].get(task, {})
      axes.set_title(f"{name}: {task}")
      if not found:
        axes.set_axis_off()
        continue
      cells = np.array([found[n] for n in sorted(found, key=int)]).T
      image = axes.imshow(
          cells, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto", origin="upper"
      )
      axes.set_xticks(
          range(len(found)), [f"{int(n):,}" for n in sorted(found, key=int)]
      )
      depths = len(cells)
      axes.set_yticks(
          range(depths),
          [f"{i / max(depths - 1, 1):.0%}" for i in range(depths)],
      )
      axes.set_xlabel("tokens")
      axes.set_ylabel("depth")
  figure.colorbar(image, ax=plots, label="accuracy", shrink=0.8)
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _tables(models) -> list[_results.Table]:
  """Returns our accuracies over all depths, and the paper's."""
  lengths = sorted(
      {
          int(n)
          for m in models.values()
          for t in m["accuracy"].values()
          for n in t
      }
  )
  rows = []
  for task in needles.TASKS:
    for name, model in models.items():
      found = model["accuracy"].get(task)
      if found:
        cells = [
            f"{np.mean(found[str(n)]):.3f}" if str(n) in found else ""
            for n in lengths
        ]
        known = f"{model['trained_length']:,}", f"{model['reach']:,}"
        rows.append([f"{task}, {name}", *cells, *known])
  ours = _results.Table(
      "Accuracy by tokens of the text, mean over depths; tokens that were trained"
      " on, and that attention and convolutions can relay:",
      ["", *(f"{n:,}" for n in lengths), "trained", "relayed"],
      rows,
  )
  rows = [
      [f"{task}, {name}", *map(str, values)]
      for name, tasks in _paper.NEEDLES.items()
      for task, values in tasks.items()
  ]
  paper = _results.Table(
      "The paper's Table 2 (percent, far larger models):",
      ["", *(f"{n:,}" for n in _paper.NEEDLE_LENGTHS)],
      rows,
  )
  return [ours, paper]


if __name__ == "__main__":
  app.run(main)
