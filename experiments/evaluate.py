# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Perplexity of a model on any text, or the tasks of the paper's Table 1.

    python -m experiments.evaluate --checkpoint=runs/mac --text='books/*.txt' \
        --workdir=runs/mac_on_books
    python -m experiments.evaluate --checkpoint=runs/mac --workdir=runs/mac_tasks \
        --tasks=lambada_openai,piqa,hellaswag

--text is cut into windows of --length tokens (by default those of training),
each read from nothing, so that every token is predicted once. results.json has
perplexity, bits per byte, accuracy, and the loss by a token's position in its
window, of which evaluate.png is the picture. --tasks are those of the Evaluation
Harness (extra `eval`), with data of the hub or of --data_dir (NAME/SPLIT.jsonl).
Several checkpoints with the same --workdir stand side by side.
"""

from __future__ import annotations

import os
import pathlib
import time
from typing import Any
import urllib.error
import urllib.request

from absl import app
from absl import flags

from titans_jax.data import sources
from titans_jax.evaluation import perplexity
from titans_jax.training import checkpoints
from titans_jax.training import metrics

from . import _checkpoint
from . import _flags
from . import _paper
from . import _results

_CHECKPOINT, _STEP = _checkpoint.define_flags()
_TEXT = flags.DEFINE_string(
    "text", None, "Text to score: files, as data.source has them."
)
_TASKS = flags.DEFINE_list("tasks", None, "Of lm-eval, instead of --text.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder with the tasks' data; the hub."
)
_LIMIT = flags.DEFINE_integer(
    "limit", None, "Documents of a task, the first ones; all.", lower_bound=1
)
_NUM_FEWSHOT = flags.DEFINE_integer(
    "num_fewshot",
    None,
    "Solved examples in front; as the task has it.",
    lower_bound=0,
)
_SHARE_PREFIXES = flags.DEFINE_bool(
    "share_prefixes", True, "Reads what questions have in common once."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the results.", required=True
)
_NAME = flags.DEFINE_string(
    "name", None, "Of the row of results; the checkpoint folder's."
)
_LENGTH = flags.DEFINE_integer(
    "length", None, "Tokens of a window; those of training.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "Windows at a time.", lower_bound=1
)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens",
    None,
    "Tokens of the text to score, from its beginning; all.",
    lower_bound=1,
)


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(checkpoints.CheckpointError):
    _check_flags()
    trained = _checkpoint.load(_CHECKPOINT.value, _STEP.value)
    if _TASKS.value is None:
      results = _on_text(trained)
    else:
      results = _on_tasks(trained, _TASKS.value)
    results.print_tables()


def _check_flags() -> None:
  """Raises ValueError for flags that contradict each other."""
  if (_TEXT.value is None) == (_TASKS.value is None):
    raise ValueError("Give --text or --tasks, one of the two.")
  alone = {
      "text": ("length", "max_tokens"),
      "tasks": ("data_dir", "limit", "num_fewshot", "share_prefixes"),
  }
  other = "tasks" if _TASKS.value is None else "text"
  for name in alone[other]:
    _flags.refuse_flag(name, f"without --{other}")


def _name() -> str:
  return _NAME.value or pathlib.Path(_CHECKPOINT.value).resolve().name


def _on_text(trained: _checkpoint.Trained) -> _results.Results:
  """Scores --text."""
  length = _length(trained)
  results = _results.Results(
      _WORKDIR.value,
      "evaluate",
      {
          "text": sources.versions(_TEXT.value),
          "length": length,
          "max_tokens": _MAX_TOKENS.value,
      },
      _text_tables,
  )
  with _flags.progress(_MAX_TOKENS.value) as progress:
    scores = perplexity.score_text(
        trained.model,
        trained.variables,
        trained.tokenizer,
        sources.documents(_TEXT.value),
        length=length,
        batch_size=_BATCH_SIZE.value,
        max_tokens=_MAX_TOKENS.value,
        progress=progress,
    )
  results.models[_name()] = {
      "step": trained.step,
      "perplexity": scores.perplexity,
      "bits_per_byte": scores.bits_per_byte,
      "accuracy": scores.accuracy,
      "tokens": int(scores.count.sum()),
      "text_bytes": scores.text_bytes,
      "by_position": [list(row) for row in scores.by_position()],
  }
  results.write()
  _plot(results.models, results.workdir / "evaluate.png")
  return results


def _on_tasks(
    trained: _checkpoint.Trained, names: list[str]
) -> _results.Results:
  """Answers --tasks."""
  asks = _DATA_DIR.value is None and "HF_HUB_OFFLINE" not in os.environ
  if asks and not _reaches_the_hub():
    # Read as its library is imported, which would try for minutes otherwise.
    os.environ["HF_HUB_OFFLINE"] = "1"
    print("The hub does not answer: what it has given before is used.")
  try:
    from titans_jax.evaluation import harness  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ImportError(
        "--tasks needs the Evaluation Harness: pip install 'titans-jax[eval]'."
    ) from error
  results = _results.Results(
      _WORKDIR.value,
      "evaluate",
      {
          "data_dir": _DATA_DIR.value,
          "limit": _LIMIT.value,
          "num_fewshot": _NUM_FEWSHOT.value,
      },
      _task_tables,
      {"table_1": _paper.LANGUAGE},
  )
  data = {name: _versions(name) for name in names}
  for model, row in results.models.items():
    for name in set(data) & set(row["tasks"]):
      if row.get("data", {}).get(name) != data[name]:
        raise ValueError(
            f"--workdir={_WORKDIR.value} has {name} of {model} on other data than"
            f" --data_dir={_DATA_DIR.value} holds now: give another --workdir."
        )
  tasks = harness.make_tasks(names, _DATA_DIR.value)
  model = harness.HarnessModel(
      *trained[:3],
      batch_size=_BATCH_SIZE.value,
      share_prefixes=_SHARE_PREFIXES.value,
  )
  start = time.perf_counter()
  found = harness.evaluate(
      model, tasks, num_fewshot=_NUM_FEWSHOT.value, limit=_LIMIT.value
  )
  print(f"Answered in {time.perf_counter() - start:,.1f} s.")
  whose = {
      "checkpoint": str(pathlib.Path(_CHECKPOINT.value).resolve()),
      "step": trained.step,
  }
  row = results.models.get(_name(), {})
  if any(row.get(key) != value for key, value in whose.items()):
    row = results.models[_name()] = whose | {"tasks": {}, "data": {}}
  row["tasks"].update(found)
  row.setdefault("data", {}).update(data)
  results.write()
  return results


def _reaches_the_hub() -> bool:
  hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
  try:
    request = urllib.request.Request(hub, method="HEAD")
    with urllib.request.urlopen(request, timeout=10):
      return True
  except urllib.error.HTTPError:
    return True  # An answer, if no page.
  except (OSError, ValueError):  # No answer, or no address.
    return False


def _versions(task: str) -> list[list[Any]] | None:
  """Returns what tells whether a task's data in --data_dir have changed."""
  if _DATA_DIR.value is None:
    return None
  files = sorted((pathlib.Path(_DATA_DIR.value) / task).glob("*.jsonl"))
  return [sources.version("", file) for file in files]


def _length(trained: _checkpoint.Trained) -> int:
  """Returns --length, or the training's.

  Raises:
    ValueError: neither is there.
  """
  length = _LENGTH.value or trained.data.get("sequence_length")
  if length is None:
    raise ValueError(
        f"--checkpoint={_CHECKPOINT.value} is an exported model, which does not"
        " say what it was trained on: give --length."
    )
  return length


def _plot(models: dict, path: pathlib.Path) -> None:
  """Draws the loss by position."""
  pyplot = metrics.make_pyplot()
  figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
  for name, found in models.items():
    rows = found["by_position"]
    axes.plot(
        [r[1] for r in rows], [r[2] for r in rows], marker="o", label=name
    )
  axes.set_xscale("log", base=2)
  axes.set_xlabel("position in the window, up to")
  axes.set_ylabel("loss (nats per token)")
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small")
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _task_tables(models: dict) -> list[_results.Table]:
  """Returns every task's metrics, and the paper's."""
  names = sorted(
      {
          (t, m)
          for x in models.values()
          for t in x["tasks"]
          for m in x["tasks"][t]
      }
  )
  ours = _results.Table(
      "Metrics of lm-eval (accuracies as shares):",
      ["", *models],
      [
          [
              f"{task} {metric}",
              *(
                  _cell(found["tasks"], task, metric)
                  for found in models.values()
              ),
          ]
          for task, metric in names
      ],
  )
  paper = [
      _results.Table(
          f"The paper's Table 1, {size} (accuracies in percent):",
          ["", *_paper.LANGUAGE_COLUMNS],
          [[name, *map(str, cells)] for name, cells in rows.items()],
      )
      for size, rows in _paper.LANGUAGE.items()
  ]
  return [ours, *paper]


def _cell(tasks: dict, task: str, metric: str) -> str:
  value = tasks.get(task, {}).get(metric)
  return "" if value is None else f"{value:.4f}"


def _text_tables(models: dict) -> list[_results.Table]:
  """Returns the numbers of the whole text, and the loss by position."""
  whole = _results.Table(
      "All tokens of the text:",
      ["", "perplexity", "bits per byte", "accuracy", "tokens"],
      [
          [
              name,
              f"{found['perplexity']:.3f}",
              f"{found['bits_per_byte']:.4f}",
              f"{found['accuracy']:.4f}",
              f"{found['tokens']:,}",
          ]
          for name, found in models.items()
      ],
  )
  by_last = {
      name: {str(last): nats for _, last, nats, _ in found["by_position"]}
      for name, found in models.items()
  }
  positions = _results.by_length(
      "Loss (nats per token) by position in the window, up to:",
      by_last,
      lambda nats: f"{nats:.3f}",
  )
  return [whole, positions]


if __name__ == "__main__":
  app.run(main)
