# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""State tracking beyond the training length: parity, arithmetic, and S5.

    python -m experiments.state_tracking --workdir=runs/state_tracking

Trains every model on every word problem with the same budget, at lengths up to
the training's, and measures far beyond. "linear" is a linear memory without
momentum, "transformer" Transformer++ with full attention.
Writes results.json and state_tracking.png. A run that was stopped goes on.
"""

from __future__ import annotations

import pathlib

from absl import app
from absl import flags

from pallas_kernels import command_line
from titans_jax.evaluation import state_tracking
from titans_jax.models import language_model
from titans_jax.training import checkpoints
from titans_jax.training import metrics
from titans_jax.training import overlay
from titans_jax.training import trainer

from . import _flags
from . import _results
from . import _variants

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder that holds the runs.", required=True
)
_TASKS = flags.DEFINE_list(
    "tasks",
    "parity,arithmetic,s5",
    f"Of {', '.join(state_tracking.TASKS)}.",
)
_MODELS = flags.DEFINE_list(
    "models", "lmm,linear,transformer", f"Of {', '.join(_variants.NAMES)}."
)
_SMOKE = flags.DEFINE_bool("smoke", False, "Trains a few steps only.")
_CONFIG = _flags.define_config("state_tracking.py")

# The lengths to measure at, as multiples of the training's.
_MULTIPLES = (1, 2, 4, 8, 16)


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(
      checkpoints.CheckpointError, trainer.NonFiniteLossError
  ):
    command_line.check_names("models", _MODELS.value, _variants.NAMES)
    command_line.check_names("tasks", _TASKS.value, list(state_tracking.TASKS))
    _flags.refuse_overrides(
        "beside --models and --tasks", "model.variant", "data.task"
    )
    values = _CONFIG.value.copy_and_resolve_references()
    if _SMOKE.value:
      _flags.shorten(values)
    # What an earlier call found for others stays.
    results = _results.Results(
        _WORKDIR.value,
        "state_tracking",
        _results.config_settings(values, "model.variant", "data.task"),
        _tables,
    )
    workdir = results.workdir
    for task in _TASKS.value:
      for name in _MODELS.value:
        result = _run(values, task, name, workdir / f"{task}_{name}")
        if result is None:
          return  # stopped by SIGTERM
        results.models.setdefault(name, {})[task] = result
        results.write()
        _plot(results.models, workdir / "state_tracking.png")
  results.print_tables()


def _run(values, task: str, name: str, workdir: pathlib.Path) -> dict | None:
  """Trains a model on a task and measures it at every length."""
  values = values.copy_and_resolve_references()
  values.data.task = task
  longest = _MULTIPLES[-1] * values.data.sequence_length
  _variants.choose(values.model, name, longest)
  data = state_tracking.StateTrackingData(**values.data.to_dict())
  run = overlay.run_config(
      values, data.vocab_size, state_tracking.StateTrackingData
  )
  print(f"\n{task}, {name}; guessing: {data.chance:.3f}.", flush=True)
  model = language_model.TitansLM(run.model)
  learned = state_tracking.StateTrackingTask(model, run.data, seed=run.seed)
  trained = trainer.train(run, workdir, model, learned)
  if not trained.finished:
    return None
  lengths = [multiple * run.data.sequence_length for multiple in _MULTIPLES]
  return {
      "chance": data.chance,
      "steps": run.train.num_steps,
      "accuracy": {str(n): learned.measure(trained.params, n) for n in lengths},
  }


def _by_task(models: dict) -> dict[str, dict[str, dict]]:
  """Returns results by task and model, from those by model and task."""
  tasks = [
      t for t in state_tracking.TASKS if any(t in m for m in models.values())
  ]
  return {
      task: {
          name: found[task] for name, found in models.items() if task in found
      }
      for task in tasks
  }


def _plot(models, path: pathlib.Path) -> None:
  """Draws the accuracy over the last tenth of a sequence against its length."""
  results = _by_task(models)
  pyplot = metrics.make_pyplot()
  figure, plots = pyplot.subplots(
      1,
      len(results),
      figsize=(1 + 3.6 * len(results), 3.6),
      sharey=True,
      squeeze=False,
      layout="constrained",
  )
  for axes, (task, found_by) in zip(plots[0], results.items()):
    for name, result in found_by.items():
      found = result["accuracy"]
      axes.plot(
          [int(n) for n in found],
          [x["last"] for x in found.values()],
          marker="o",
          label=name,
      )
      chance = result["chance"]
    axes.axhline(chance, color="gray", linestyle=":", label="guessing")
    axes.set_title(task)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens")
    axes.set_ylim(0, 1.03)
    axes.grid(alpha=0.3)
  plots[0, 0].set_ylabel("accuracy, last tenth")
  plots[0, -1].legend()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _tables(models) -> list[_results.Table]:
  """Returns the accuracies."""
  rows, lengths = [], []
  for task, found_by in _by_task(models).items():
    for name, result in found_by.items():
      found = result["accuracy"]
      lengths = list(found)
      cells = (f"{x['accuracy']:.3f}/{x['last']:.3f}" for x in found.values())
      rows.append([f"{task}, {name}", *cells, f"{result['chance']:.3f}"])
  title = "Accuracy over all tokens / over the last tenth, by tokens:"
  return [_results.Table(title, ["", *lengths, "guessing"], rows)]


if __name__ == "__main__":
  app.run(main)
