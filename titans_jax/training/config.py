# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The configuration of a training run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Iterator

from titans_jax.models import config as model_config
from titans_jax.parallel import mesh as mesh_lib

# Increased when checkpoints or config.json change their form.
FORMAT_VERSION = 1

# A run that is resumed may change these; anything else makes it another run.
FREE = (
    ("train", "log_every"),
    ("train", "eval_every"),
    ("train", "checkpoint_every"),
    ("train", "keep_checkpoints"),
    ("train", "keep_every"),
    ("train", "profile_at"),
    ("train", "wandb_project"),
    ("data", "cache_dir"),
    ("parallel",),
)


def check_at_least(config, section: str, least: int, *names: str) -> None:
  """Raises ValueError where a field of a run's section is below `least`."""
  for name in names:
    value = getattr(config, name)
    if value < least:
      raise ValueError(
          f"{section}.{name} must be at least {least}, got {value}."
      )


def check_lengths(data) -> None:
  """Raises ValueError where a section `data` has no rows, or lengths that no
  draw from least_length to sequence_length can have."""
  check_at_least(
      data, "data", 1, "sequence_length", "least_length", "batch_size"
  )
  if data.least_length > data.sequence_length:
    raise ValueError(
        f"data.least_length={data.least_length} is more than"
        f" data.sequence_length={data.sequence_length}."
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read.

  Attributes:
    source: "builtin" (the documentation that Python carries), a folder of
      experiments.prepare_data, a file, a glob of files, or
      `hf://datasets/OWNER/NAME[@REVISION][/GLOB]` of the hub: text, `.jsonl` (a
      document per line under "text"), `.parquet` (a row's column "text"), or
      `.array_record` (a document per record).
    tokenizer: "byte", or the path of a Hugging Face tokenizer.json.
    sequence_length: T, a multiple of the chunk (for MAC of the segment): the
      tokens of a row that one step reads, and back-propagates through.
    segments: steps that read one packed sequence of segments * T tokens, one
      after another. The state is carried from one to the next without its
      gradient (truncated back-propagation through time).
    batch_size: sequences per step, over all processes.
    heldout_fraction: share of the text that is never trained on.
    max_heldout_sequences: evaluate on no more packed sequences; None: on all.
    cache_dir: where the tokenised text is kept; None: in the workdir.
  """

  source: str = "builtin"
  tokenizer: str = "byte"
  sequence_length: int = 512
  segments: int = 1
  batch_size: int = 8
  heldout_fraction: float = 0.1
  max_heldout_sequences: int | None = None
  cache_dir: str | None = None

  def __post_init__(self):
    check_at_least(self, "data", 1, "sequence_length", "segments", "batch_size")
    if self.max_heldout_sequences is not None:
      check_at_least(self, "data", 1, "max_heldout_sequences")
    if not 0 < self.heldout_fraction < 1:
      raise ValueError(
          "data.heldout_fraction must lie between 0 and 1, got"
          f" {self.heldout_fraction}."
      )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with warm-up and cosine decay.

  Attributes:
    learning_rate: at the peak.
    warmup_steps: steps of linear warm-up, at most all but the last.
    final_fraction: learning rate at the end, as a share of the peak.
    weight_decay: of projections and embeddings; norms, biases, gates, persistent
      tokens and the initial memory are not decayed.
    b1: decay of the first moment.
    b2: decay of the second moment.
    epsilon: added to the root of the second moment.
    max_grad_norm: bound on the global norm of the gradient.
  """

  learning_rate: float = 1e-3
  warmup_steps: int = 100
  final_fraction: float = 0.1
  weight_decay: float = 0.1
  b1: float = 0.9
  b2: float = 0.95
  epsilon: float = 1e-8
  max_grad_norm: float = 1.0

  def __post_init__(self):
    check_at_least(self, "optimizer", 0, "warmup_steps", "weight_decay")
    for name in ("learning_rate", "epsilon", "max_grad_norm"):
      if not 0 < getattr(self, name) < math.inf:
        raise ValueError(
            f"optimizer.{name} must be positive, got {getattr(self, name)}."
        )
    for name in ("b1", "b2", "final_fraction"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(
            f"optimizer.{name} must lie between 0 and 1, got"
            f" {getattr(self, name)}."
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long and how.

  Attributes:
    num_steps: optimizer steps.
    accumulation: microbatches whose gradients make one step.
    z_loss: weight of the mean of log(Z)**2.
    memory_cost: weight of what the memories write without need and forget, as
      `Gauges.cost` has it. What was written is then found again in texts far
      longer than those of the training.
    log_every: steps between rows of metrics.
    eval_every: steps between evaluations on the held-out text.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: how many of the newest are kept.
    keep_every: those of this step's multiples are kept for good; None: none.
    profile_at: a step from which on three steps are profiled, for xprof, into
      the workdir's `profile`; None: none.
    wandb_project: of Weights & Biases, which gets the metrics too (extra
      `wandb`); None: nothing goes there.
  """

  num_steps: int = 1000
  accumulation: int = 1
  z_loss: float = 0.0
  memory_cost: float = 0.0
  log_every: int = 10
  eval_every: int = 100
  checkpoint_every: int = 100
  keep_checkpoints: int = 3
  keep_every: int | None = None
  profile_at: int | None = None
  wandb_project: str | None = None

  def __post_init__(self):
    check_at_least(
        self,
        "train",
        1,
        "num_steps",
        "accumulation",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
    )
    check_at_least(self, "train", 0, "z_loss", "memory_cost")
    for name in ("keep_every", "profile_at"):
      if getattr(self, name) is not None:
        check_at_least(self, "train", 1, name)
    if self.keep_every is not None and self.keep_every % self.checkpoint_every:
      raise ValueError(
          f"train.keep_every={self.keep_every} must be a multiple of"
          f" train.checkpoint_every={self.checkpoint_every}: no others are saved."
      )


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A run: everything that its result depends on.

  Attributes:
    model: the model.
    data: what is read: a `DataConfig`, or the frozen dataclass of another task,
      with `batch_size`, and `sequence_length` where its rows are tokens.
    optimizer: AdamW's numbers.
    train: how long and how.
    parallel: over which devices.
    seed: of parameters and data order.
  """

  model: model_config.TitansConfig
  data: Any = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  parallel: mesh_lib.ParallelConfig = mesh_lib.ParallelConfig()
  seed: int = 0

  def __post_init__(self):
    if not 0 <= self.seed < 2**32:
      raise ValueError(
          f"seed must be at least 0 and below 2**32, got {self.seed}."
      )
    if self.data.batch_size % self.train.accumulation:
      raise ValueError(
          f"data.batch_size={self.data.batch_size} is not a multiple of"
          f" train.accumulation={self.train.accumulation}."
      )
    if self.carried_rows and self.train.accumulation > 1:
      raise ValueError(
          f"train.accumulation={self.train.accumulation} cannot be had with"
          f" data.segments={self.data.segments}, whose state is that of all rows"
          " of a step: choose a smaller data.batch_size."
      )
    if (
        self.carried_rows
        and self.model.variant == "transformer"
        and self.model.window is None
        and self.data.segments * self.data.sequence_length
        > self.model.max_length
    ):
      raise ValueError(
          f"data.segments={self.data.segments} times data.sequence_length="
          f"{self.data.sequence_length} is more than full attention holds"
          f" (model.max_length={self.model.max_length}): set max_length, or a"
          " window."
      )
    length = getattr(self.data, "sequence_length", 0)
    if length % self.model.unit:
      raise ValueError(
          f"data.sequence_length={self.data.sequence_length} is not a multiple"
          f" of {self.model.unit}, the model's"
          f" {'segment' if self.model.variant == 'mac' else 'chunk'}."
      )

  @property
  def carried_rows(self) -> int | None:
    """Rows of the state that a step goes on with; None where it starts anew."""
    if getattr(self.data, "segments", 1) == 1:
      return None
    return self.data.batch_size

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values, as `config.json` holds them."""
    return dataclasses.asdict(self) | {"format_version": FORMAT_VERSION}


def run_config(values: dict[str, Any], data_class=DataConfig) -> RunConfig:
  """Returns the run that plain values describe.

  Args:
    values: as `RunConfig.to_dict` returns them.
    data_class: of the section `data`.

  Raises:
    ValueError: values out of range, or of another format version.
    TypeError: a field that does not exist.
  """
  check_version(values)
  return RunConfig(
      model=model_config.make_config(values["model"]),
      data=data_class(**values["data"]),
      optimizer=OptimizerConfig(**values["optimizer"]),
      train=TrainConfig(**values["train"]),
      parallel=mesh_lib.ParallelConfig(**values["parallel"]),
      seed=values["seed"],
  )


def differences(
    saved: dict[str, Any], wanted: Any, path: tuple[str, ...] = ()
) -> Iterator[str]:
  """Says in which fields a saved run differs from one, but those in `FREE`.

  A field that the saved run did not know yet had its default.

  Args:
    saved: plain values of a run, as `RunConfig.to_dict` returns them.
    wanted: the run, or a section.
    path: of the section.
  """
  defaults = {f.name: f.default for f in dataclasses.fields(wanted)}
  if not path:
    defaults["format_version"] = FORMAT_VERSION
  for name in sorted(set(saved) | set(defaults)):
    here = (*path, name)
    if here in FREE:
      continue
    if name not in defaults:
      yield f"{'.'.join(here)} is a field that this program does not have"
      continue
    default = defaults[name]
    new = getattr(wanted, name, default)
    if dataclasses.is_dataclass(new):
      yield from differences(saved.get(name, {}), new, here)
      continue
    old = saved.get(name, default)
    if old != new:
      yield f"{'.'.join(here)} is {old!r} there and {new!r} here"


def check_version(values: dict[str, Any]) -> None:
  """Raises ValueError for values of another format version."""
  version = values.get("format_version", FORMAT_VERSION)
  if version != FORMAT_VERSION:
    raise ValueError(
        f"The configuration has format version {version}, but this program"
        f" reads version {FORMAT_VERSION}."
    )
