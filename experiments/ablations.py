# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""What every part of the memory is worth (the paper's Table 5, and more).

    python -m experiments.ablations --workdir=runs/ablations \
        --config.data.source=book.txt

Trains LMM, LMM without one part at a time, and the variants with attention, on
text and on associative recall, with several seeds, all else being equal. Writes
results.json (held-out perplexity; accuracy of recall over the training distance)
and ablations.png. A run that was stopped goes on.
"""

from __future__ import annotations

import functools
import math
import pathlib
from typing import Any, Callable

from absl import app
from absl import flags
import numpy as np

from pallas_kernels import command_line
from titans_jax import data as data_lib
from titans_jax.evaluation import recall
from titans_jax.models import language_model
from titans_jax.training import checkpoints
from titans_jax.training import config as config_lib
from titans_jax.training import metrics
from titans_jax.training import overlay
from titans_jax.training import trainer

from . import _flags
from . import _paper
from . import _results
from . import _text
from . import _variants

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder that holds the runs.", required=True
)
_ROWS = flags.DEFINE_list(
    "rows",
    list(_variants.ABLATIONS),
    f"Of {', '.join(_variants.ABLATIONS)}.",
)
_TASKS = flags.DEFINE_list("tasks", "text,recall", "Of text, recall.")
_SEEDS = flags.DEFINE_integer(
    "seeds", 3, "Runs of each, with other seeds.", lower_bound=1
)
_SMOKE = flags.DEFINE_bool("smoke", False, "Trains a few steps only.")
_CONFIG = _flags.define_config("ablations.py")
_RECALL = _flags.define_config("recall.py", "recall")

_MEASURES = {"text": "perplexity", "recall": "accuracy"}


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(checkpoints.CheckpointError):
    command_line.check_names("rows", _ROWS.value, list(_variants.ABLATIONS))
    command_line.check_names("tasks", _TASKS.value, list(_MEASURES))
    for flag in ("config", "recall"):
      _flags.refuse_overrides("beside --rows", "model.variant", flag=flag)
    values = {
        "text": _CONFIG.value.copy_and_resolve_references(),
        "recall": _RECALL.value.copy_and_resolve_references(),
    }
    if _SMOKE.value:
      for value in values.values():
        _flags.shorten(value)
    make_run = {"text": _text_run, "recall": _recall_run}
    runs = {
        (task, row, seed): make_run[task](values[task], row, seed)
        for task in _TASKS.value
        for row in _ROWS.value
        for seed in range(_SEEDS.value)
    }
    corpus = _corpus(values["text"])
    settings: dict[str, Any] = {"corpus": corpus.fingerprint}
    for task, value in values.items():
      for name, field in _results.config_settings(value).items():
        settings[f"{task}.{name}"] = field
    results = _results.Results(
        _WORKDIR.value,
        "ablations",
        settings,
        _tables,
        {"table_5": _paper.ABLATIONS},
    )
    measure: dict[str, Callable[..., float | None]] = {
        "text": functools.partial(_text.perplexity, corpus),
        "recall": _recall,
    }
    for (task, row, seed), run in runs.items():
      found = results.models.setdefault(row, {}).setdefault(task, {})
      if str(seed) in found:
        continue
      name = f"{task}_{row.replace(' ', '_')}_{seed}"
      print(f"\n{name}:", flush=True)
      train = functools.partial(measure[task], run, results.workdir / name)
      if not _results.add_seed(found, seed, train):
        return
      results.write()
      _plot(results.models, results.workdir / "ablations.png")
  results.print_tables()


def _text_run(values, row: str, seed: int) -> config_lib.RunConfig:
  values = _of_row(values, row, seed)
  tokenizer = data_lib.make_tokenizer(values.data.tokenizer)
  return overlay.run_config(values, tokenizer.vocab_size)


def _recall_run(values, row: str, seed: int) -> config_lib.RunConfig:
  values = _of_row(values, row, seed)
  data = recall.RecallData(**values.data.to_dict())
  return overlay.run_config(values, data.vocab_size, recall.RecallData)


def _of_row(values, row: str, seed: int):
  values = values.copy_and_resolve_references()
  values.model.variant = "lmm"
  _variants.change(values.model, _variants.ABLATIONS[row])
  values.seed += seed
  return values


def _corpus(values) -> data_lib.Corpus:
  """Returns the text, packed alike for the chunks and segments of all rows."""
  units = [_text_run(values, row, 0).model.unit for row in _variants.ABLATIONS]
  data = values.data
  return data_lib.prepare(
      data.source,
      data_lib.make_tokenizer(data.tokenizer),
      _flags.local_folder("workdir", _WORKDIR.value) / "data",
      sequence_length=data.sequence_length,
      unit=math.lcm(*units),
      heldout_fraction=data.heldout_fraction,
      max_heldout_sequences=data.max_heldout_sequences,
  )


def _recall(run: config_lib.RunConfig, workdir: pathlib.Path) -> float | None:
  """Returns the accuracy of recall; None if stopped."""
  model = language_model.TitansLM(run.model)
  task = recall.RecallTask(model, run.data, seed=run.seed)
  trained = trainer.train(run, workdir, model, task)
  if not trained.finished:
    return None
  return task.accuracy(trained.params, run.data.filler_length, False)


def _plot(models: dict[str, Any], path: pathlib.Path) -> None:
  """Draws both measures, with deviations over seeds."""
  pyplot = metrics.make_pyplot()
  figure, plots = pyplot.subplots(
      1, 2, figsize=(10, 1.2 + 0.32 * len(models)), layout="constrained"
  )
  for axes, (task, measure) in zip(plots, _MEASURES.items()):
    rows = {
        row: values
        for row, found in models.items()
        if (values := _results.finite(found.get(task, {})))
    }
    axes.set_title(f"{task}: {measure}")
    axes.barh(
        list(rows),
        [np.mean(v) for v in rows.values()],
        xerr=[np.std(v) for v in rows.values()],
        color="C0",
    )
    axes.invert_yaxis()
    if task == "text" and rows:  # small differences count
      least = min(map(min, rows.values()))
      axes.set_xlim(left=0.95 * least)
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _tables(models: dict[str, Any]) -> list[_results.Table]:
  """Returns both measures, and the paper's."""
  rows = []
  for row, found in models.items():
    cells = []
    for task in _MEASURES:
      seeds = found.get(task, {})
      cells.append(_results.over_seeds(seeds))
    rows.append([row, *cells])
  ours = _results.Table(
      "Held-out perplexity of text, and accuracy of recall; mean and deviation"
      " over seeds:",
      ["", *(f"{task} ({measure})" for task, measure in _MEASURES.items())],
      rows,
  )
  paper = _results.Table(
      "The paper's Table 5 (far larger models; BABILong is its long context):",
      ["", "perplexity", "reasoning", "BABILong"],
      [[row, *map(str, cells)] for row, cells in _paper.ABLATIONS.items()],
  )
  return [ours, paper]


if __name__ == "__main__":
  app.run(main)
