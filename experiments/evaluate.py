# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Perplexity and bits per byte of a model on any text.

    python -m experiments.evaluate --checkpoint=runs/mac --text='books/*.txt' \
        --workdir=runs/mac_on_books

The text is cut into windows of --length tokens (by default those of training),
each read from nothing, so that every token is predicted once. Writes results.json
(perplexity, bits per byte, accuracy, and the loss by a token's position in its
window) and evaluate.png, the picture of the latter. Several checkpoints with the
same --workdir stand side by side.
"""

from __future__ import annotations

import pathlib

from absl import app
from absl import flags

from titans_jax.data import sources
from titans_jax.evaluation import perplexity
from titans_jax.training import checkpoints
from titans_jax.training import metrics

from . import _checkpoint
from . import _flags
from . import _results

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Workdir of experiments.pretrain, or a folder of experiments.export.",
    required=True,
)
_STEP = flags.DEFINE_integer("step", None, "Of the checkpoint; the newest.")
_TEXT = flags.DEFINE_string("text", None, "As data.source.", required=True)
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
    "Tokens of the text to read about, from its beginning; all.",
    lower_bound=1,
)


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(checkpoints.CheckpointError):
    trained = _checkpoint.load(_CHECKPOINT.value, _STEP.value)
    length = _length(trained)
    results = _results.Results(
        _WORKDIR.value,
        "evaluate",
        {
            "text": sources.versions(_TEXT.value),
            "length": length,
            "max_tokens": _MAX_TOKENS.value,
        },
        _tables,
    )
    scores = perplexity.score_text(
        trained.model,
        trained.variables,
        trained.tokenizer,
        sources.documents(_TEXT.value),
        length=length,
        batch_size=_BATCH_SIZE.value,
        max_tokens=_MAX_TOKENS.value,
    )
    name = _NAME.value or pathlib.Path(_CHECKPOINT.value).resolve().name
    results.models[name] = {
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
    results.print_tables()


def _length(trained: _checkpoint.Trained) -> int:
  """Returns --length, or the training's.

  Raises:
    ValueError: neither is there, or full attention does not hold it.
  """
  length = _LENGTH.value or trained.data.get("sequence_length")
  if length is None:
    raise ValueError(
        f"--checkpoint={_CHECKPOINT.value} is an exported model, which does not"
        " say what it was trained on: give --length."
    )
  config = trained.model.config
  full = config.variant == "transformer" and config.window is None
  if full and length > config.max_length:
    raise ValueError(
        f"--length={length} is more than the {config.max_length} tokens that the"
        " model's full attention holds."
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


def _tables(models: dict) -> list[_results.Table]:
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
      name: {last: nats for _, last, nats, _ in found["by_position"]}
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
