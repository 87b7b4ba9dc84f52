# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trained models, as the experiments that go on from one take them."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, NamedTuple

from absl import flags
import ml_collections

from titans_jax import data
from titans_jax import inference
from titans_jax import tokenizers
from titans_jax.inference import exporting
from titans_jax.models import config as model_config
from titans_jax.models import language_model
from titans_jax.models import states
from titans_jax.training import checkpoints
from titans_jax.training import config as config_lib

flags.disclaim_key_flags()


class Trained(NamedTuple):
  """A trained language model.

  Attributes:
    model: the model.
    variables: its parameters.
    tokenizer: that it was trained with.
    step: of the checkpoint; None for an exported model.
    data: section `data` of its run; empty for an exported model.
    format_version: of the checkpoint, or of the exported folder.
  """

  model: language_model.TitansLM
  variables: Any
  tokenizer: tokenizers.Tokenizer
  step: int | None
  data: dict[str, Any]
  format_version: int


def define_flags():
  """Defines and returns --checkpoint and --step."""
  checkpoint = flags.DEFINE_string(
      "checkpoint",
      None,
      "Workdir of experiments.pretrain, or a folder of experiments.export.",
      required=True,
  )
  step = flags.DEFINE_integer("step", None, "Of the checkpoint; the newest.")
  return checkpoint, step


def adopt_model(values: ml_collections.ConfigDict, path: str) -> dict[str, Any]:
  """Sets a configuration's section `model` to that of a run, of any task.

  Args:
    values: of --config.
    path: workdir of the run.

  Returns:
    The run's configuration.

  Raises:
    checkpoints.CheckpointError: it holds no checkpoint that can be read.
    ValueError: it is of another format version.
  """
  with contextlib.closing(checkpoints.open_checkpoints(path)) as manager:
    before = manager.run()
  with values.unlocked():
    values.model = before["model"]
  return before


def load(path: str, step: int | None) -> Trained:
  """Returns a checkpoint's model, or an exported one.

  Args:
    path: workdir of a run of experiments.pretrain, or a folder of
      experiments.export.
    step: of the checkpoint; None: the newest whole one.

  Raises:
    checkpoints.CheckpointError: none can be read.
    ValueError: the run's model was not trained on text, or an exported model is
      damaged or asked for a step.
  """
  if inference.is_exported(path):
    if step is not None:
      raise ValueError(
          f"--step={step}: {path} is an exported model, of no step."
      )
    return Trained(
        *inference.load(path),
        step=None,
        data={},
        format_version=exporting.FORMAT_VERSION,
    )
  with contextlib.closing(checkpoints.open_checkpoints(path)) as manager:
    if "tokenizer" not in manager.run()["data"]:
      raise ValueError(
          f"--checkpoint={path} is no run of experiments.pretrain: its model was"
          " not trained on text."
      )
    params, run, step = manager.restore_params(step)
  print(f"Checkpoint of step {step}.", file=sys.stderr)
  return Trained(
      language_model.TitansLM(model_config.make_config(run["model"])),
      {"params": params},
      data.make_tokenizer(run["data"]["tokenizer"]),
      step,
      run["data"],
      config_lib.FORMAT_VERSION,
  )


def load_state(
    path: str, model: language_model.TitansLM, variables: Any
) -> language_model.State:
  """Returns the state of --load_state, of one row.

  Raises:
    ValueError: as `inference.load_state`, or a state of several rows.
  """
  state = inference.load_state(path, model, variables)
  if (rows := states.num_rows(state)) != 1:
    raise ValueError(f"--load_state={path} holds {rows} rows, not one.")
  return state
