# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Training steps of several models, timed in turns."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from typing import Any, Callable

import jax

from titans_jax.models import language_model
from titans_jax.training import config as config_lib
from titans_jax.training import optimizer as optimizer_lib
from titans_jax.training import step as step_lib


def time_steps(
    runs: dict[str, config_lib.RunConfig], rounds: int, baseline: str
) -> dict[str, dict[str, Any]]:
  """Times models in turns: one step of each, round for round.

  Args:
    runs: of language models, by name.
    rounds: how often each is timed.
    baseline: one of the names.

  Returns:
    By name `tokens_per_second`, of the median time; `ratio`, the median over
    rounds of its throughput to the baseline's in the same round; and `bytes`,
    what a step needs by the compiler's account.
  """
  steps = {name: _prepare(run) for name, run in runs.items()}
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(rounds):
    for name, (step, _) in steps.items():
      start = time.perf_counter()
      step()
      seconds[name].append(time.perf_counter() - start)
  found = {}
  for name, (_, needed) in steps.items():
    run = runs[name]
    tokens = run.data.batch_size * run.data.sequence_length
    ratios = [b / a for a, b in zip(seconds[name], seconds[baseline])]
    found[name] = {
        "tokens_per_second": tokens / statistics.median(seconds[name]),
        "ratio": statistics.median(ratios),
        "bytes": needed,
    }
    print(
        f"{name} at {run.data.sequence_length:,} tokens:"
        f" {found[name]['tokens_per_second']:,.0f} tokens/s,"
        f" {found[name]['ratio']:.2f} of {baseline}'s",
        flush=True,
    )
  del steps
  gc.collect()  # of the models of this length
  return found


def _prepare(run: config_lib.RunConfig) -> tuple[Callable[[], None], int]:
  """Returns what makes a step, compiled and run once, and the bytes it needs."""
  model = language_model.TitansLM(run.model)
  optimizer = optimizer_lib.make_optimizer(run.optimizer, run.train.num_steps)
  state = jax.jit(
      functools.partial(step_lib.init_state, model, optimizer, run.seed)
  )()
  shape = run.data.batch_size, run.data.sequence_length + 1
  text = jax.random.randint(
      jax.random.key(run.seed), shape, 0, run.model.vocab_size
  )
  batch = {"tokens": text[:, :-1], "targets": text[:, 1:]}
  compiled = step_lib.jit_train_step(model, optimizer).lower(state, batch)
  compiled = compiled.compile()
  memory = compiled.memory_analysis()

  def step() -> None:
    nonlocal state
    state, found = compiled(state, batch)
    jax.block_until_ready((state, found))

  step()
  return step, memory.temp_size_in_bytes + memory.argument_size_in_bytes
