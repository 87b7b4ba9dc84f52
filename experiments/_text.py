# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the experiments share that train language models on text."""

from __future__ import annotations

import pathlib

from titans_jax import data as data_lib
from titans_jax.models import language_model
from titans_jax.training import config as config_lib
from titans_jax.training import tasks
from titans_jax.training import trainer


def cut(values, lengths: list[int]) -> dict[int, int]:
  """Returns the sequences of a step by length, all with the same tokens.

  Args:
    values: of --config: data.batch_size sequences of data.sequence_length.
    lengths: of --lengths.

  Raises:
    ValueError: a length that does not divide the tokens of a step.
  """
  tokens = values.data.batch_size * values.data.sequence_length
  for length in lengths:
    if tokens % length:
      raise ValueError(
          f"--lengths: the {tokens} tokens of a step (data.batch_size times"
          f" data.sequence_length) are not sequences of {length}."
      )
  return {length: tokens // length for length in lengths}


def perplexity(
    corpus: data_lib.Corpus, run: config_lib.RunConfig, workdir: pathlib.Path
) -> float | None:
  """Trains a run and returns its held-out perplexity; None if stopped."""
  model = language_model.TitansLM(run.model)
  task = tasks.TextTask(
      model, corpus, batch_size=run.data.batch_size, seed=run.seed
  )
  trained = trainer.train(run, workdir, model, task)
  if not trained.finished:
    return None
  return task.evaluate(trained.params)["eval_perplexity"]
