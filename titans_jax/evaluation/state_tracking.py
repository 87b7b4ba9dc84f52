# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""State tracking: the product of what was read so far, at every token.

A token is an element of a group, or an operation on a number; the target at a
token is what all tokens up to it make (the word problem). That of the group S5
is complete for NC1 (Barrington's theorem), so that a model within TC0 is not
expected to solve it at every length; parity and sums are regular and easier. The
paper's Theorem 4.1 claims that Titans go beyond TC0.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, Iterator

import numpy as np

from titans_jax.models import language_model
from titans_jax.training import config as config_lib
from titans_jax.training import step as step_lib
from titans_jax.training import tasks

Batch = dict[str, np.ndarray]

_EVAL_SEQUENCES = 128


@functools.cache
def _parity() -> np.ndarray:
  """Sums of bits, modulo 2."""
  x = np.arange(2)
  return (x[:, None] + x) % 2


@functools.cache
def _arithmetic() -> np.ndarray:
  """A number modulo 5, added to, taken from, or multiplied with another.

  Not with 0, behind which nothing before would count.
  """
  x = np.arange(5)[:, None]
  by = np.arange(5)
  return np.concatenate([(x + by) % 5, (x - by) % 5, (x * by[1:]) % 5], axis=1)


@functools.cache  # of 14,400 products, for every batch
def _s5() -> np.ndarray:
  """Permutations of five things, one after another."""
  group = list(itertools.permutations(range(5)))
  number = {p: i for i, p in enumerate(group)}
  return np.array(
      [[number[tuple(q[i] for i in p)] for q in group] for p in group]
  )


# A task's table: [state, token] -> the state behind the token. State 0 is the
# first (of parity and arithmetic zero, of S5 the identity).
TASKS = {"parity": _parity, "arithmetic": _arithmetic, "s5": _s5}


@dataclasses.dataclass(frozen=True)
class StateTrackingData:
  """What is trained on.

  Attributes:
    task: of `TASKS`: "parity", "arithmetic" (modulo 5, from the left) or "s5".
    sequence_length: tokens of the longest sequences.
    least_length: of the shortest; lengths between are as likely.
    batch_size: sequences per step.
  """

  task: str = "parity"
  sequence_length: int = 64
  least_length: int = 1
  batch_size: int = 64

  def __post_init__(self):
    config_lib.check_lengths(self)
    if self.task not in TASKS:
      raise ValueError(
          f"data.task={self.task!r} is none of {', '.join(TASKS)}."
      )

  @property
  def vocab_size(self) -> int:
    """Tokens and states share their numbers."""
    return max(TASKS[self.task]().shape)

  @property
  def chance(self) -> float:
    """Accuracy of guessing a state."""
    return 1 / TASKS[self.task]().shape[0]


def make_batch(
    data: StateTrackingData, rng: np.random.Generator, padded: int
) -> Batch:
  """Draws sequences of random tokens.

  Args:
    data: task and sizes.
    rng: what to draw from.
    padded: tokens of a row, at least data.sequence_length.

  Returns:
    `tokens`, `targets` (-1 behind a sequence's end), `document_ids` and `mask`,
    [B, padded] each.
  """
  table = TASKS[data.task]()
  shape = data.batch_size, data.sequence_length
  tokens = rng.integers(table.shape[1], size=shape).astype(np.int32)
  states = np.zeros_like(tokens)
  state = np.zeros(data.batch_size, np.int64)
  for i in range(data.sequence_length):
    state = table[state, tokens[:, i]]
    states[:, i] = state
  lengths = rng.integers(
      data.least_length, data.sequence_length + 1, data.batch_size
  )
  mask = np.arange(data.sequence_length) < lengths[:, None]
  rest = ((0, 0), (0, padded - data.sequence_length))
  return {
      "tokens": np.pad(np.where(mask, tokens, 0), rest),
      "targets": np.pad(np.where(mask, states, -1), rest, constant_values=-1),
      "document_ids": np.zeros((data.batch_size, padded), np.int32),
      "mask": np.pad(mask, rest),
  }


class StateTrackingTask:
  """A word problem, for the training loop."""

  def __init__(
      self,
      model: language_model.TitansLM,
      data: StateTrackingData,
      *,
      seed: int,
  ):
    self.fingerprint = tasks.fingerprint((data, seed))
    self._model = model
    self._data = data
    self._seed = seed
    self._eval_step = step_lib.jit_eval_step(model)

  def batches(self, first_step: int) -> Iterator[Batch]:
    step = first_step
    while True:
      rng = np.random.default_rng((self._seed, step))
      yield make_batch(self._data, rng, self._data.sequence_length)
      step += 1

  def evaluate(self, params: Any) -> dict[str, float]:
    """Returns what `measure` finds at the training length."""
    found = self.measure(params, self._data.sequence_length)
    return {f"eval_{name}": value for name, value in found.items()}

  def measure(self, params: Any, length: int) -> dict[str, float]:
    """Measures sequences of a length.

    Returns:
      `loss` (nats) and `accuracy` over all tokens, and `last`, the accuracy over
      the last tenth of them.
    """
    size = self._data.batch_size
    data = dataclasses.replace(
        self._data, sequence_length=length, least_length=length
    )
    unit = self._model.config.unit

    def drawn(unscored):
      for i in range(-(-_EVAL_SEQUENCES // size)):
        rng = np.random.default_rng((self._seed, tasks.EVAL_STREAM + i))
        batch = make_batch(data, rng, -(-length // unit) * unit)
        batch["targets"][:, :unscored] = -1
        yield batch

    measure = functools.partial(
        tasks.measure, self._eval_step, params, batch_size=size
    )
    late = measure(drawn(length - max(length // 10, 1)))
    return measure(drawn(0)) | {"last": late["accuracy"]}
