# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""BABILong: facts scattered in texts of up to millions of tokens.

    python -m experiments.babilong --workdir=runs/babilong \
        --config.data.stories=qa1_train.txt --stories=qa1_test.txt \
        --haystack=books.txt --lengths=1000,16000,1000000

Trains --variants on --config.data.stories scattered in other text (the
fine-tuned setting), or trains the model of --init_from further, or asks that of
--checkpoint as it is; --shots puts solved questions in front of every text (the
few-shot setting). Writes results.json and babilong.png into the workdir. A run
that was stopped goes on.
"""

from __future__ import annotations

import functools
import pathlib

from absl import app
from absl import flags
import numpy as np

from titans_jax.evaluation import babi
from titans_jax.evaluation import haystacks
from titans_jax.training import checkpoints
from titans_jax.training import metrics
from titans_jax.training import trainer

from . import _asking
from . import _flags
from . import _paper
from . import _results

_STORIES = flags.DEFINE_string(
    "stories", None, "bAbI file with the questions to ask.", required=True
)
_HAYSTACK = flags.DEFINE_string(
    "haystack", "builtin", "Text around the facts, as data.source."
)
_SHOTS = flags.DEFINE_integer(
    "shots", 0, "Solved questions in front of every text.", lower_bound=0
)
_SHOTS_FROM = flags.DEFINE_string(
    "shots_from", None, "bAbI file that they come from."
)
_CONFIG = _flags.define_config("babilong.py")

# The lengths to measure at, as multiples of the training's.
_MULTIPLES = (1, 4, 16, 64)


flags.adopt_module_key_flags(_asking)


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(
      checkpoints.CheckpointError, trainer.NonFiniteLossError
  ):
    _asking.check_flags()
    stories = babi.read_stories(_STORIES.value, "--stories")
    shots = _shots(stories)
    haystacks.check(_HAYSTACK.value, "--haystack")

    def prepare(tokenizer, lengths: list[int]) -> babi.Stories:
      makes = babi.Stories(stories, _HAYSTACK.value, tokenizer, shots=shots)
      makes.check(lengths[0], "--lengths")
      return makes

    settings = {
        "stories": _STORIES.value,
        "haystack": _HAYSTACK.value,
        "shots": _SHOTS.value,
        "shots_from": _SHOTS_FROM.value,
        "samples": 4 if _asking.SMOKE.value else _asking.SAMPLES.value,
    }
    paper = {
        "lengths": _paper.BABI_LENGTHS,
        "fine_tuned": _paper.BABI_FINE_TUNED,
        "few_shot": _paper.BABI_FEW_SHOT,
    }
    results = _asking.Results("babilong", settings, _tables, paper)
    if not _asking.measure_all(
        _measure,
        results,
        values=_CONFIG.value,
        data_class=babi.BabiData,
        make_task=babi.make_task,
        prepare=prepare,
        multiples=_MULTIPLES,
    ):
      return  # stopped by SIGTERM
  results.print_tables()


def _shots(stories: list[babi.Story]) -> list[babi.Story]:
  """Returns the solved questions that stand in front of every text."""
  if bool(_SHOTS.value) != (_SHOTS_FROM.value is not None):
    raise ValueError(
        f"--shots={_SHOTS.value} and --shots_from={_SHOTS_FROM.value}: give both"
        " or none; the solved questions must not be those that are asked."
    )
  if not _SHOTS.value:
    return []
  solved = babi.read_stories(_SHOTS_FROM.value, "--shots_from")
  solved = sorted(set(solved) - set(stories))
  if len(solved) < _SHOTS.value:
    raise ValueError(
        f"--shots={_SHOTS.value}, but --shots_from={_SHOTS_FROM.value} has"
        f" {len(solved)} questions that --stories has not."
    )
  chosen = _asking.rng(0).choice(len(solved), _SHOTS.value, replace=False)
  return [solved[i] for i in chosen]


def _measure(subject: _asking.Subject, results: _asking.Results) -> None:
  """Asks a model at every length not done yet."""
  makes = subject.texts
  done = results.of(subject)
  for length in subject.lengths:
    if str(length) in done:
      continue
    asked = [
        functools.partial(makes.draw, length, _asking.rng(1, length, i))
        for i in range(results.settings["samples"])
    ]
    found = _asking.ask(subject, asked)
    right = [babi.is_right(*pair, makes.labels) for pair in found]
    done[str(length)] = float(np.mean(right))
    print(
        f"{subject.name} at {length:,} tokens: {np.mean(right):.3f}", flush=True
    )
    results.write()
    _plot(results.models, results.workdir / "babilong.png")


def _plot(models, path: pathlib.Path) -> None:
  """Draws accuracy over length, ours and the paper's."""
  pyplot = metrics.make_pyplot()
  figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
  for name, model in models.items():
    lengths = sorted(map(int, model["accuracy"]))
    accuracy = [model["accuracy"][str(n)] for n in lengths]
    axes.plot(lengths, accuracy, marker="o", label=name)
  paper = _paper.BABI_FEW_SHOT if _SHOTS.value else _paper.BABI_FINE_TUNED
  for name, values in paper.items():
    axes.plot(
        _paper.BABI_LENGTHS[: len(values)],
        np.array(values) / 100,
        linestyle=":",
        linewidth=1,
        label=f"paper: {name}",
    )
  axes.set_xscale("log")
  axes.set_xlabel("tokens")
  axes.set_ylabel("accuracy")
  axes.set_ylim(0, 1.03)
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small")
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _tables(models) -> list[_results.Table]:
  """Returns our accuracies, and the paper's."""
  lengths = sorted({int(n) for m in models.values() for n in m["accuracy"]})
  rows = []
  for name, model in models.items():
    cells = (model["accuracy"].get(str(n)) for n in lengths)
    shown = ("" if cell is None else f"{cell:.3f}" for cell in cells)
    rows.append([name, *shown, f"{model['trained_length']:,}"])
  ours = _results.Table(
      "Accuracy by tokens of the text; tokens that were trained on:",
      ["", *(f"{n:,}" for n in lengths), "trained"],
      rows,
  )
  kind = "few-shot" if _SHOTS.value else "fine-tuned"
  numbers = _paper.BABI_FEW_SHOT if _SHOTS.value else _paper.BABI_FINE_TUNED
  missing = len(_paper.BABI_LENGTHS)
  paper = _results.Table(
      f"The paper's Figure 6, {kind} (percent, larger models):",
      ["", *(f"{n // 1000:,}K" for n in _paper.BABI_LENGTHS)],
      [
          [name, *map(str, values), *[""] * (missing - len(values))]
          for name, values in numbers.items()
      ],
  )
  return [ours, paper]


if __name__ == "__main__":
  app.run(main)
