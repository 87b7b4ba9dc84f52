# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the experiments share that ask questions at the end of long texts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from typing import Any, Callable, Iterator, Sequence

from absl import flags
import numpy as np

from titans_jax import data as data_lib
from titans_jax.data import files
from titans_jax.data import tokenizers
from titans_jax.evaluation import answers
from titans_jax.evaluation import recall
from titans_jax.models import config as model_config
from titans_jax.models import language_model
from titans_jax.training import checkpoints
from titans_jax.training import config as config_lib
from titans_jax.training import overlay
from titans_jax.training import trainer

from . import _checkpoint

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the runs and what was measured.", required=True
)
VARIANTS = flags.DEFINE_list(
    "variants", "mac,transformer", "Which to train, with --config's sizes."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Workdir of a run to measure: nothing is trained."
)
STEP = flags.DEFINE_integer("step", None, "Of --checkpoint; the newest.")
INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Workdir of a run of experiments.pretrain: its model is trained further, in"
    " place of --variants.",
)
LENGTHS = flags.DEFINE_list(
    "lengths",
    None,
    "Tokens of the texts; by default 1, 2, 4, ... times training's.",
)
SAMPLES = flags.DEFINE_integer(
    "samples", 100, "Texts for each length.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 16, "Texts that are read at once.", lower_bound=1
)
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 64, "An answer's tokens at most.", lower_bound=1
)
SEED = flags.DEFINE_integer("eval_seed", 0, "Of the texts to measure with.")
SMOKE = flags.DEFINE_bool(
    "smoke", False, "Trains a few steps and asks a few questions only."
)


@dataclasses.dataclass(frozen=True)
class Subject:
  """A trained model.

  Attributes:
    name: of the row of results.
    model: the model.
    variables: its parameters.
    tokenizer: of its run.
    step: of the checkpoint.
    trained_length: tokens of the longest text that it was trained on.
  """

  name: str
  model: language_model.TitansLM
  variables: Any
  tokenizer: tokenizers.Tokenizer
  step: int
  trained_length: int


def check_flags() -> None:
  """Raises ValueError for flags that contradict each other."""
  if CHECKPOINT.value is not None and INIT_FROM.value is not None:
    raise ValueError(
        "--checkpoint measures a run and --init_from trains one further: give"
        " one of the two."
    )
  if STEP.value is not None and CHECKPOINT.value is None:
    raise ValueError(f"--step={STEP.value} needs --checkpoint.")
  if not VARIANTS.value:
    raise ValueError("--variants names none.")
  for variant in VARIANTS.value:
    if variant not in model_config.VARIANTS:
      raise ValueError(
          f"--variants: {variant!r} is none of {model_config.VARIANTS}."
      )
  if LENGTHS.value is not None:
    for length in LENGTHS.value:
      if not length.strip().isdigit() or int(length) < 1:
        raise ValueError(f"--lengths: {length!r} is no number of tokens.")


def subjects(
    values,
    data_class,
    make_task: Callable[..., answers.AnswerTask],
    workdir: pathlib.Path,
) -> Iterator[Subject | None]:
  """Yields the models that the flags ask for, trained; None where a signal ended
  the training.

  Args:
    values: of --config.
    data_class: of its section `data`.
    make_task: (model, data, seed) -> what to train on.
    workdir: holds a run for every variant.
  """
  if CHECKPOINT.value is not None:
    model, variables, saved, step = _checkpoint.load(
        CHECKPOINT.value, STEP.value
    )
    tokenizer = data_lib.make_tokenizer(saved["data"]["tokenizer"])
    name = pathlib.Path(CHECKPOINT.value).resolve().name
    length = saved["data"]["sequence_length"] * saved["data"].get("segments", 1)
    yield Subject(name, model, variables, tokenizer, step, length)
    return
  names = VARIANTS.value
  if INIT_FROM.value is not None:
    names = [pathlib.Path(INIT_FROM.value).resolve().name]
  for name in names:
    run = _run(values, name, data_class)
    tokenizer = data_lib.make_tokenizer(run.data.tokenizer)
    model = language_model.TitansLM(run.model)
    task = make_task(model, run.data, run.seed)
    print(f"\n{name}:", flush=True)
    trained = trainer.train(
        run, workdir / name, model, task, init_from=INIT_FROM.value
    )
    if not trained.finished:
      yield None
      return
    yield Subject(
        name,
        model,
        {"params": trained.params},
        tokenizer,
        run.train.num_steps,
        run.data.sequence_length,
    )


def _run(values, name: str, data_class) -> config_lib.RunConfig:
  """Returns the run of --variants' `name`, or of --init_from's model."""
  values = values.copy_and_resolve_references()
  if SMOKE.value:
    values.train.num_steps = 20
    values.train.eval_every = 20
  if INIT_FROM.value is None:
    values.model.variant = name
    tokenizer = data_lib.make_tokenizer(values.data.tokenizer)
    return overlay.run_config(values, tokenizer.vocab_size, data_class)
  with contextlib.closing(
      checkpoints.open_checkpoints(INIT_FROM.value)
  ) as others:
    before = others.run()
  values.data.tokenizer = before["data"]["tokenizer"]
  run = overlay.run_config(values, 2, data_class)
  model = config_lib.make_model_config(before["model"])
  return dataclasses.replace(run, model=model)


class Results:
  """results.json: what was measured so far, under the same settings."""

  def __init__(self, workdir: pathlib.Path, settings: dict[str, Any], paper):
    """Reads what an earlier call measured.

    Raises:
      ValueError: it measured with other settings.
    """
    self._path = workdir / "results.json"
    self.models: dict[str, dict[str, Any]] = {}
    self._fixed = {"settings": settings, "paper": paper}
    if self._path.exists():
      before = json.loads(self._path.read_text())
      changed = [
          f"{name} was {before['settings'].get(name)!r} and is {value!r}"
          for name, value in settings.items()
          if before["settings"].get(name) != value
      ]
      if changed:
        raise ValueError(
            f"{self._path} was measured otherwise: {'; '.join(changed)}. Give"
            " another --workdir, or remove the file."
        )
      self.models = before["models"]

  def of(self, subject: Subject) -> dict[str, Any]:
    """Returns a model's results, empty if it was not measured at this step."""
    model = self.models.get(subject.name)
    if model is None or model["step"] != subject.step:
      self.models[subject.name] = {
          "step": subject.step,
          "trained_length": subject.trained_length,
          "reach": reach(subject),
          "accuracy": {},
      }
    return self.models[subject.name]["accuracy"]

  def write(self) -> None:
    files.replace(
        self._path, json.dumps(self._fixed | {"models": self.models}, indent=1)
    )


def lengths(subject: Subject, multiples: Sequence[int]) -> list[int]:
  """Returns --lengths, or multiples of the training's."""
  if LENGTHS.value is None:
    return [multiple * subject.trained_length for multiple in multiples]
  return sorted({int(length) for length in LENGTHS.value})


def reach(subject: Subject) -> int:
  """Returns how far back attention and convolutions can relay, in tokens."""
  return recall.reach(subject.model.config)


def ask(
    subject: Subject, examples: Sequence[Callable[[], answers.Example]]
) -> list[tuple[answers.Example, str]]:
  """Returns examples, drawn when their turn comes, and what a model says."""
  found = []
  size = BATCH_SIZE.value
  for first in range(0, len(examples), size):
    drawn = [draw() for draw in examples[first : first + size]]
    prompts = [example.prompt for example in drawn]
    # One program for all batches.
    prompts += prompts[-1:] * (min(size, len(examples)) - len(prompts))
    said = answers.ask(
        subject.model,
        subject.variables,
        subject.tokenizer,
        prompts,
        max_new_tokens=MAX_NEW_TOKENS.value,
    )
    found += list(zip(drawn, said))
  return found


def rng(*stream: int) -> np.random.Generator:
  """Returns what an example is drawn from: the same for every model."""
  return np.random.default_rng((SEED.value, *stream))
