# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Measures how quickly a run's data can be read, beside what its step consumes.

    python -m experiments.read_data --config=experiments/configs/titans_760m_mac.py \
        --config.data.source=data/fineweb_edu --config.data.cache_dir=data/cache \
        [--plan=runs/plan/plan.json]

Reads the batches of the configuration as training does, on this machine's CPUs
and without a model, for some seconds. With a plan of experiments.plan it says
what one of the planned processes must read: more than the planned step, which is
an upper bound, no process ever needs.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import tempfile
import time

from absl import app
from absl import flags
import numpy as np

from titans_jax import data
from titans_jax.models import language_model
from titans_jax.training import overlay
from titans_jax.training import tasks

from . import _flags

_SECONDS = flags.DEFINE_float(
    "seconds", 10.0, "How long to read.", lower_bound=0.1
)
_PLAN = flags.DEFINE_string(
    "plan", None, "A plan.json, to compare with what its step consumes."
)
_CONFIG = _flags.define_config("quickstart.py")

_REPEATS = 5


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors():
    tokenizer = data.make_tokenizer(_CONFIG.value.data.tokenizer)
    config = overlay.run_config(_CONFIG.value, tokenizer.vocab_size)
    plan = None if _PLAN.value is None else _read_plan(_PLAN.value, config)
    with tempfile.TemporaryDirectory() as folder:
      corpus = tasks.prepare_corpus(
          config, tokenizer, config.data.cache_dir or folder
      )
      print(corpus.summary())
      rate = _tokens_per_second(config, corpus)
  print(f"The pipeline alone: {rate:,.0f} tokens/s (median of {_REPEATS}).")
  if plan is not None:
    needed = plan["estimate"]["tokens_per_second"] / plan["processes"]
    print(
        f"The planned step consumes at best {needed:,.0f} tokens/s on each of"
        f" {plan['processes']} processes: {rate / needed:.1f} times that is read."
    )


def _read_plan(path: str, config) -> dict:
  """Returns a plan, which must be that of this configuration's batches."""
  try:
    plan = json.loads(pathlib.Path(path).read_text())
  except json.JSONDecodeError as error:
    raise ValueError(
        f"--plan={path} is not readable as JSON: {error}."
    ) from error
  if "estimate" not in plan or "processes" not in plan:
    raise ValueError(f"--plan={path} is not that of a step that fits.")
  for name in ("batch_size", "sequence_length"):
    if plan[name] != getattr(config.data, name):
      raise ValueError(
          f"--plan={path} has {name}={plan[name]}, the configuration"
          f" {getattr(config.data, name)}."
      )
  return plan


def _tokens_per_second(config, corpus: data.Corpus) -> float:
  task = tasks.TextTask(
      language_model.TitansLM(config.model),
      corpus,
      batch_size=config.data.batch_size,
      seed=config.seed,
      segments=config.data.segments,
  )
  batches = task.batches(0)
  next(batches)
  rates = []
  for _ in range(_REPEATS):
    start, tokens = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS.value / _REPEATS:
      tokens += np.size(next(batches)["tokens"])
    rates.append(tokens / (time.perf_counter() - start))
  return statistics.median(rates)


def run() -> None:
  app.run(main)


if __name__ == "__main__":
  run()
