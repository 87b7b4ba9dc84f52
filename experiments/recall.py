# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Proof that the memory remembers: associative recall beyond attention's reach.

    python -m experiments.recall --workdir=runs/recall [--variants=lmm,mac]

Trains every variant and the windowed attention baseline with the same budget
and writes results.json and recall.png, accuracy against distance. A run that
was stopped goes on.
"""

import pathlib

from absl import app
from absl import flags

from pallas_kernels import command_line
from titans_jax.evaluation import recall
from titans_jax.models import config as model_config
from titans_jax.models import language_model
from titans_jax.training import checkpoints
from titans_jax.training import metrics
from titans_jax.training import overlay
from titans_jax.training import trainer

from . import _flags
from . import _results

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder that holds the runs.", required=True
)
_VARIANTS = flags.DEFINE_list(
    "variants", "lmm,mac,mag,mal,transformer", "Which to train."
)
_SMOKE = flags.DEFINE_bool("smoke", False, "Trains a few steps only.")
_CONFIG = _flags.define_config("recall.py")

# Filler lengths of the evaluation, as multiples of the training's.
_MULTIPLES = (1, 2, 4, 8)


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(
      checkpoints.CheckpointError, trainer.NonFiniteLossError
  ):
    command_line.check_names("variants", _VARIANTS.value, model_config.VARIANTS)
    _flags.refuse_overrides("beside --variants", "model.variant")
    values = _CONFIG.value.copy_and_resolve_references()
    if _SMOKE.value:
      _flags.shorten(values)
    # What an earlier call found for other variants stays.
    results = _results.Results(
        _WORKDIR.value,
        "recall",
        _results.config_settings(values, "model.variant"),
        _tables,
    )
    workdir = results.workdir
    for variant in _VARIANTS.value:
      values.model.variant = variant
      result = _run(values, workdir / variant)
      if result is None:
        return  # stopped by SIGTERM
      results.models[variant] = result
      results.write()
      _plot(results.models, workdir / "recall.png")
  results.print_tables()


def _run(values, workdir: pathlib.Path) -> dict | None:
  """Trains one variant and measures it at every distance."""
  run = overlay.run_config(
      values,
      recall.RecallData(**values.data.to_dict()).vocab_size,
      recall.RecallData,
  )
  reach = recall.reach(run.model)
  if run.data.least_distance <= reach:
    raise ValueError(
        f"data.filler_length={run.data.filler_length} leaves queried pairs"
        f" within the {reach} tokens that attention and convolutions of"
        f" {run.model.variant} can relay."
    )
  print(
      f"\n{run.model.variant}: queried pairs lie at least"
      f" {run.data.least_distance} tokens back; attention and convolutions can relay {reach}. Guessing among the"
      f" values seen: {run.data.chance:.3f}."
  )
  model = language_model.TitansLM(run.model)
  task = recall.RecallTask(model, run.data, seed=run.seed)
  trained = trainer.train(run, workdir, model, task)
  if not trained.finished:
    return None
  result = {
      "reach": reach,
      "chance": run.data.chance,
      "steps": run.train.num_steps,
      "accuracy": [],
  }
  for multiple in _MULTIPLES:
    length = multiple * run.data.filler_length
    result["accuracy"].append(
        {
            "distance": length + 1,
            "random_filler": task.accuracy(trained.params, length, False),
            "repeated_filler": task.accuracy(trained.params, length, True),
        }
    )
  return result


def _plot(results: dict, path: pathlib.Path) -> None:
  """Draws accuracy over distance."""
  pyplot = metrics.make_pyplot()
  figure, plots = pyplot.subplots(
      1, 2, figsize=(9, 3.8), sharey=True, layout="constrained"
  )
  for axes, kind in zip(plots, ("random_filler", "repeated_filler")):
    for variant, result in results.items():
      points = result["accuracy"]
      axes.plot(
          [p["distance"] for p in points],
          [p[kind] for p in points],
          marker="o",
          label=variant,
      )
    chance = next(iter(results.values()))["chance"]
    axes.axhline(chance, color="gray", linestyle=":", label="guessing")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("least distance of a queried pair (tokens)")
    axes.set_title(kind.replace("_", " "))
    axes.set_ylim(0, 1.03)
    axes.grid(alpha=0.3)
  plots[0].set_ylabel("accuracy")
  plots[1].legend()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _tables(models: dict) -> list[_results.Table]:
  """Returns the accuracies."""
  points = next(iter(models.values()))["accuracy"]
  rows = []
  for variant, result in models.items():
    cells = (
        f"{p['random_filler']:.3f}/{p['repeated_filler']:.3f}"
        for p in result["accuracy"]
    )
    known = f"{result['reach']:,}", f"{result['chance']:.3f}"
    rows.append([variant, *cells, *known])
  table = _results.Table(
      "Accuracy (random / repeated filler) by least distance; tokens that"
      " attention and convolutions can relay, and guessing among the values seen:",
      ["", *(str(p["distance"]) for p in points), "relayed", "guessing"],
      rows,
  )
  return [table]


if __name__ == "__main__":
  app.run(main)
