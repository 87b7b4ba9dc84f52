# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint is, and what its memories do while they read a text.

    titans-inspect --checkpoint=runs/mac
    titans-inspect --checkpoint=runs/mac --text=chapter.txt --output=chapter.html

Prints configuration, format, parameters, step, and the bytes that the state of one
sequence takes. --text is read token by token into a page for the browser, which
shows for every token how much it surprised the memories, how strongly it was
written, what was forgotten, and what having learned from the text added to its
probability. In a checkout: python -m experiments.inspect_checkpoint.
"""

from __future__ import annotations

import dataclasses
import pathlib

from absl import app
from absl import flags
import jax
import numpy as np

from titans_jax import files
from titans_jax.data import sources
from titans_jax.evaluation import inspection
from titans_jax.models import states
from titans_jax.training import checkpoints

from . import _checkpoint
from . import _flags
from . import _inspect_page

_CHECKPOINT, _STEP = _checkpoint.define_flags()
_TEXT = flags.DEFINE_string(
    "text", None, "Text to read, as data.source has it: its first document."
)
_OUTPUT = flags.DEFINE_string("output", None, "The page, an .html file.")
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 2000, "Of the text, from its beginning.", lower_bound=1
)


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(checkpoints.CheckpointError):
    output = _output()
    trained = _checkpoint.load(_CHECKPOINT.value, _STEP.value)
    about = _about(trained)
    width = max(len(name) for name, _ in about)
    for name, value in about:
      print(f"{name:<{width}}  {value}")
    if output is not None:
      _write_page(trained, about, output)
      print(f"\nOpen {output} in a browser.")


def _output() -> pathlib.Path | None:
  """Returns where the page goes; None without --text."""
  if (_TEXT.value is None) != (_OUTPUT.value is None):
    raise ValueError("--text and --output mean nothing without each other.")
  if _OUTPUT.value is None:
    _flags.refuse_flag("max_tokens", "without --text")
    return None
  output = _flags.local_folder("output", _OUTPUT.value)
  if output.suffix != ".html":
    raise ValueError(f"--output={_OUTPUT.value} must end in .html.")
  if output.is_dir():
    raise ValueError(f"--output={_OUTPUT.value} is a folder.")
  return output


def _about(trained: _checkpoint.Trained) -> list[tuple[str, str]]:
  """Returns names and values that describe a checkpoint."""
  config = trained.model.config
  leaves = jax.tree.leaves(trained.variables)
  state = jax.eval_shape(
      lambda variables: trained.model.init_state(variables, batch_size=1),
      trained.variables,
  )
  kind = "exported model" if trained.step is None else "checkpoint"
  rows = [("format", f"{kind}, version {trained.format_version}")]
  if trained.step is not None:
    rows.append(("step", f"{trained.step:,}"))
  rows += [
      (
          "parameters",
          f"{sum(x.size for x in leaves):,}"
          f" ({states.size_in_bytes(leaves):,} bytes)",
      ),
      ("state", f"{states.size_in_bytes(state):,} bytes a sequence"),
      ("tokenizer", f"{trained.tokenizer.vocab_size:,} tokens"),
  ]
  rows += [(f"data.{name}", str(value)) for name, value in trained.data.items()]
  for field in dataclasses.fields(config):
    rows.append((f"model.{field.name}", str(getattr(config, field.name))))
  return rows


def _text() -> bytes:
  """Returns the first document of --text that is not empty."""
  try:
    for text in sources.documents(_TEXT.value):
      if text:
        return text
  except ValueError as error:
    raise ValueError(f"--text={_TEXT.value}: {error}") from error
  raise ValueError(f"--text={_TEXT.value} holds no text.")


def _write_page(
    trained: _checkpoint.Trained,
    about: list[tuple[str, str]],
    output: pathlib.Path,
) -> None:
  """Reads --text and writes what was seen."""
  if trained.model.config.variant == "transformer":
    raise ValueError(
        f"--checkpoint={_CHECKPOINT.value} has no memory to watch: without --text"
        " it is described."
    )
  limit = _MAX_TOKENS.value
  # No more is tokenised than is sure to be enough.
  ids = np.asarray(trained.tokenizer.encode(_text()[: 100 * limit]))[:limit]
  with _flags.progress(len(ids)) as progress:
    trace = inspection.trace(
        trained.model,
        trained.variables,
        trained.tokenizer,
        ids,
        progress=progress,
    )
  name = pathlib.Path(_CHECKPOINT.value).resolve().name
  title = f"{name} ({trained.model.config.variant}) reads {_TEXT.value}"
  output.parent.mkdir(parents=True, exist_ok=True)
  pieces = inspection.pieces(trained.tokenizer, ids)
  files.replace(output, _inspect_page.page(title, about, pieces, trace))


if __name__ == "__main__":
  app.run(main)
