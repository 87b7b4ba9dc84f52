# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the experiments share that ask questions at the end of long texts."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Callable, Iterator, Sequence

from absl import flags
import numpy as np

from pallas_kernels import command_line
from titans_jax import data as data_lib
from titans_jax import tokenizers
from titans_jax.evaluation import answers
from titans_jax.evaluation import recall
from titans_jax.models import checksums
from titans_jax.models import config as model_config
from titans_jax.models import language_model
from titans_jax.training import config as config_lib
from titans_jax.training import overlay
from titans_jax.training import tasks
from titans_jax.training import trainer

from . import _checkpoint
from . import _flags
from . import _results

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
SEED = flags.DEFINE_integer(
    "eval_seed", 0, "Of the texts to measure with.", lower_bound=0
)
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
    lengths: tokens of the texts to measure with, ascending.
    texts: what `prepare` made.
  """

  name: str
  model: language_model.TitansLM
  variables: Any
  tokenizer: tokenizers.Tokenizer
  step: int
  trained_length: int
  lengths: list[int]
  texts: Any


def check_flags() -> None:
  """Raises ValueError for flags that contradict each other."""
  if CHECKPOINT.value is not None and INIT_FROM.value is not None:
    raise ValueError(
        "--checkpoint measures a run and --init_from trains one further: give"
        " one of the two."
    )
  if STEP.value is not None and CHECKPOINT.value is None:
    raise ValueError(f"--step={STEP.value} needs --checkpoint.")
  if CHECKPOINT.value is not None:
    _flags.refuse_overrides("with --checkpoint: nothing is trained", "")
  elif INIT_FROM.value is not None:
    _flags.refuse_overrides(
        "with --init_from: model and tokenizer are its",
        "model.",
        "data.tokenizer",
    )
  else:
    _flags.refuse_overrides("beside --variants", "model.variant")
  for flag in ("checkpoint", "init_from"):
    if flags.FLAGS[flag].present:
      _flags.refuse_flag("variants", f"with --{flag}")
  command_line.check_names("variants", VARIANTS.value, model_config.VARIANTS)
  if LENGTHS.value is not None:
    command_line.positive_integers("lengths", LENGTHS.value)


def measure_all(
    measure: Callable[[Subject, Results], None], results: Results, **sources
) -> bool:
  """Measures every model that the flags ask for.

  Args:
    measure: asks one model what is not in the results yet.
    results: of the experiment.
    **sources: arguments of `_subjects`.

  Returns:
    False if a signal ended a training.
  """
  for subject in _subjects(workdir=results.workdir, **sources):
    if subject is None:
      return False
    measure(subject, results)
  return True


def _subjects(
    values,
    data_class,
    make_task: Callable[..., answers.AnswerTask],
    prepare: Callable[[tokenizers.Tokenizer, list[int]], Any],
    multiples: Sequence[int],
    workdir: pathlib.Path,
) -> Iterator[Subject | None]:
  """Yields the models that the flags ask for, trained; None where a signal ended
  the training.

  Args:
    values: of --config.
    data_class: of its section `data`.
    make_task: (model, data, seed) -> what to train on.
    prepare: (tokenizer, lengths) -> what draws the texts to measure with, which
      have to fit; called before a model is trained.
    multiples: without --lengths, of the training's.
    workdir: holds a run for every variant.
  """
  if CHECKPOINT.value is not None:
    trained = _checkpoint.load(CHECKPOINT.value, STEP.value)
    if trained.step is None:
      raise ValueError(
          f"--checkpoint={CHECKPOINT.value} is an exported model, which does not"
          " say what it was trained on: give the workdir of its run."
      )
    name = pathlib.Path(CHECKPOINT.value).resolve().name
    data, tokenizer = trained.data, trained.tokenizer
    length = data["sequence_length"] * data.get("segments", 1)
    lengths = _lengths(trained.model.config, length, multiples)
    texts = prepare(tokenizer, lengths)
    yield Subject(
        name,
        trained.model,
        trained.variables,
        tokenizer,
        trained.step,
        length,
        lengths,
        texts,
    )
    return
  names = VARIANTS.value
  if INIT_FROM.value is not None:
    names = [pathlib.Path(INIT_FROM.value).resolve().name]
  # All that may be wrong is found before the first one is trained.
  runs = {name: _run(values, name, data_class) for name in names}
  data = runs[names[0]].data  # of all
  for run in runs.values():
    lengths = _lengths(run.model, data.sequence_length, multiples)
  tokenizer = data_lib.make_tokenizer(data.tokenizer)
  texts = prepare(tokenizer, lengths)
  for name, run in runs.items():
    model = language_model.TitansLM(run.model)
    task = make_task(model, data, run.seed)
    print(f"\n{name}:", flush=True)
    result = trainer.train(
        run, workdir / name, model, task, init_from=INIT_FROM.value
    )
    if not result.finished:
      yield None
      return
    yield Subject(
        name,
        model,
        {"params": result.params},
        tokenizer,
        run.train.num_steps,
        data.sequence_length,
        lengths,
        texts,
    )


def _run(values, name: str, data_class) -> config_lib.RunConfig:
  """Returns the run of --variants' `name`, or of --init_from's model."""
  values = values.copy_and_resolve_references()
  if SMOKE.value:
    _flags.shorten(values)
  if INIT_FROM.value is None:
    values.model.variant = name
    tokenizer = data_lib.make_tokenizer(values.data.tokenizer)
    return overlay.run_config(values, tokenizer.vocab_size, data_class)
  before = _checkpoint.adopt_model(values, INIT_FROM.value)
  if "tokenizer" not in before["data"]:
    raise ValueError(
        f"--init_from={INIT_FROM.value}: its model was not trained on text."
    )
  values.data.tokenizer = before["data"]["tokenizer"]
  return overlay.run_config(values, values.model.vocab_size, data_class)


class Results(_results.Results):
  """Those of models that were asked, under the flags here."""

  def __init__(
      self,
      experiment: str,
      settings: dict[str, Any],
      make_tables: Callable[[dict[str, Any]], list[_results.Table]],
      paper: dict[str, Any],
  ):
    """Reads what an earlier call measured.

    Args:
      experiment: its name.
      settings: its own, `samples` among them; those of the flags here are added.
      make_tables: as in `_results.Results`.
      paper: numbers to stand beside.

    Raises:
      ValueError: it was another experiment, or measured with other settings.
    """
    settings = settings | {
        "max_new_tokens": MAX_NEW_TOKENS.value,
        "eval_seed": SEED.value,
    }
    super().__init__(WORKDIR.value, experiment, settings, make_tables, paper)

  def of(self, subject: Subject) -> dict[str, Any]:
    """Returns a model's results: none if other parameters or other texts were
    measured under its name."""
    identity = tasks.fingerprint(
        (checksums.checksums(subject.variables), subject.texts.fingerprint)
    )
    model = self.models.get(subject.name)
    if model is None or model["identity"] != identity:
      self.models[subject.name] = {
          "identity": identity,
          "step": subject.step,
          "trained_length": subject.trained_length,
          "reach": recall.reach(subject.model.config),
          "accuracy": {},
      }
    return self.models[subject.name]["accuracy"]


def _lengths(
    config: model_config.TitansConfig, trained: int, multiples: Sequence[int]
) -> list[int]:
  """Returns --lengths, or multiples of the training's.

  Raises:
    ValueError: full attention cannot hold the longest.
  """
  if LENGTHS.value is None:
    if SMOKE.value:
      multiples = multiples[:2]
    lengths = [multiple * trained for multiple in multiples]
  else:
    lengths = command_line.positive_integers("lengths", LENGTHS.value)
  if config.variant == "transformer" and config.window is None:
    needed = lengths[-1] + MAX_NEW_TOKENS.value
    if needed > config.max_length:
      raise ValueError(
          f"Full attention holds model.max_length={config.max_length} tokens,"
          f" and a text of {lengths[-1]} with its answer needs {needed}: choose"
          " other --lengths."
      )
  return lengths


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
