# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trained language model, as the experiments that use one load it."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from titans_jax import inference
from titans_jax.models import language_model
from titans_jax.models import states
from titans_jax.training import checkpoints
from titans_jax.training import config


def load(
    path: str, step: int | None
) -> tuple[language_model.TitansLM, Any, dict[str, Any], int]:
  """Returns a checkpoint's model, its variables, its run's configuration, and
  its step.

  Args:
    path: workdir of a run of experiments.pretrain.
    step: of the checkpoint; None: the newest whole one.

  Raises:
    checkpoints.CheckpointError: none can be read.
    ValueError: the run's model was not trained on text.
  """
  with contextlib.closing(checkpoints.open_checkpoints(path)) as manager:
    if "tokenizer" not in manager.run()["data"]:
      raise ValueError(
          f"--checkpoint={path} is no run of experiments.pretrain: its model was"
          " not trained on text."
      )
    params, run, step = manager.restore_params(step)
  print(f"Checkpoint of step {step}.", file=sys.stderr)
  model = language_model.TitansLM(config.make_model_config(run["model"]))
  return model, {"params": params}, run, step


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
