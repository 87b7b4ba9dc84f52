# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-query associative recall, out of reach of attention and convolutions.

A sequence lists pairs of a key and a value, then filler, then asks for every
key once, in random order: at a key the model must predict its value. The answers
never stand in the input, so a query that was answered does not narrow down the
next. Half of the sequences repeat one filler token, the others draw fillers at
random.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator

import numpy as np

from titans_jax.models import config as model_config
from titans_jax.models import language_model
from titans_jax.training import config as config_lib
from titans_jax.training import step as step_lib
from titans_jax.training import tasks

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class RecallData:
  """The task's sizes.

  Attributes:
    num_pairs: pairs per sequence, each queried once.
    num_keys: keys to draw from.
    num_values: values to draw from.
    num_fillers: filler tokens to draw from.
    filler_length: tokens between the pairs and the queries.
    batch_size: sequences per step.
  """

  num_pairs: int = 8
  num_keys: int = 32
  num_values: int = 32
  num_fillers: int = 32
  filler_length: int = 56
  batch_size: int = 32

  def __post_init__(self):
    names = (field.name for field in dataclasses.fields(self))
    config_lib.check_at_least(self, "data", 1, *names)
    for name in ("num_keys", "num_values"):
      if getattr(self, name) < self.num_pairs:
        raise ValueError(
            f"data.{name}={getattr(self, name)} cannot give"
            f" data.num_pairs={self.num_pairs} different ones."
        )

  @property
  def sequence_length(self) -> int:
    return 3 * self.num_pairs + self.filler_length

  @property
  def vocab_size(self) -> int:
    return self.num_keys + self.num_values + self.num_fillers

  @property
  def chance(self) -> float:
    """Accuracy of guessing among the values that the sequence holds."""
    return 1 / self.num_pairs

  @property
  def least_distance(self) -> int:
    """Tokens from the last pair's value to the first query."""
    return self.filler_length + 1


def reach(config: model_config.TitansConfig) -> int:
  """Returns how far back attention and convolutions can relay, in tokens.

  In every layer a token may come from a window (for MAC: a segment) further
  back, and from as far as the memory's convolutions reach: over x and, for MAC,
  over y once more.
  """
  conv = max(config.conv_size - 1, 0)
  attention = config.max_length if config.window is None else config.window
  per_layer = {
      "transformer": attention,
      "lmm": conv,
      "mal": attention + conv,
      "mag": attention + conv,
      "mac": config.segment_length + 2 * conv,
  }
  return config.num_layers * per_layer[config.variant]


def make_batch(
    data: RecallData, rng: np.random.Generator, *, repeated: bool | None = None
) -> Batch:
  """Draws a batch.

  Args:
    data: the task's sizes.
    rng: what to draw from.
    repeated: whether the filler is one token repeated; None: in every second
      sequence.

  Returns:
    `tokens`, `targets` (-1 but at the queries), `document_ids`, `mask`, and
    `distances`, int32 [B, num_pairs]: from each queried value to its query.
  """
  size, pairs = data.batch_size, data.num_pairs

  def draw(count):
    return rng.permuted(np.tile(np.arange(count), (size, 1)), axis=1)[:, :pairs]

  keys = draw(data.num_keys)
  values = data.num_keys + draw(data.num_values)
  listed = np.stack([keys, values], axis=-1).reshape(size, 2 * pairs)
  shape = (size, data.filler_length)
  fillers = rng.integers(data.num_fillers, size=shape)
  if repeated is None:
    same = np.arange(size) % 2 == 0
  else:
    same = np.full(size, repeated)
  fillers = np.where(same[:, None], fillers[:, :1], fillers)
  fillers += data.num_keys + data.num_values
  order = draw(pairs)
  queries = np.take_along_axis(keys, order, axis=1)
  tokens = np.concatenate([listed, fillers, queries], axis=1).astype(np.int32)
  targets = np.full_like(tokens, -1)
  targets[:, -pairs:] = np.take_along_axis(values, order, axis=1)
  at_query = data.sequence_length - pairs + np.arange(pairs)
  return {
      "tokens": tokens,
      "targets": targets,
      "document_ids": np.zeros_like(tokens),
      "mask": np.ones_like(tokens, bool),
      "distances": (at_query - (2 * order + 1)).astype(np.int32),
  }


class RecallTask:
  """Associative recall, for the training loop."""

  def __init__(
      self, model: language_model.TitansLM, data: RecallData, *, seed: int
  ):
    self.fingerprint = tasks.fingerprint((data, seed))
    self._data = data
    self._seed = seed
    self._eval_step = step_lib.jit_eval_step(model)

  def batches(self, first_step: int) -> Iterator[Batch]:
    step = first_step
    while True:
      batch = make_batch(self._data, np.random.default_rng((self._seed, step)))
      del batch["distances"]
      yield batch
      step += 1

  def evaluate(self, params: Any) -> dict[str, float]:
    """Returns loss and accuracy at the training length."""
    found = self._measure(params, self._data, None)
    return {f"eval_{name}": value for name, value in found.items()}

  def accuracy(
      self, params: Any, filler_length: int, repeated: bool | None = None
  ) -> float:
    """Returns the accuracy with another length or kind of filler."""
    data = dataclasses.replace(self._data, filler_length=filler_length)
    return self._measure(params, data, repeated)["accuracy"]

  def _measure(self, params, data, repeated, batches=8) -> dict[str, float]:
    def drawn():
      for i in range(batches):
        rng = np.random.default_rng((self._seed, tasks.EVAL_STREAM + i))
        batch = make_batch(data, rng, repeated=repeated)
        del batch["distances"]
        yield batch

    return tasks.measure(self._eval_step, params, drawn(), data.batch_size)
