# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's pretraining runs (NeurIPS section 4.1, Table 5, appendix E.1), and
the small ones of the synthetic tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

from titans_jax.models import presets
from titans_jax.training import overlay


@dataclasses.dataclass(frozen=True)
class _Recipe:
  """Peak learning rate, and tokens to train on."""

  learning_rate: float
  tokens: float


_RECIPES = {
    "170m": _Recipe(3e-3, 15e9),
    "340m": _Recipe(1.5e-3, 15e9),
    "760m": _Recipe(1.25e-3, 30e9),
    "1_3b": _Recipe(7e-4, 100e9),
}

_LENGTH = 4096
_BATCH_SIZE = 128  # 0.5M tokens


def pretraining(size: str, variant: str, kind: str = ""):
  """Returns the configuration of a pretraining run.

  The paper's numbers where it gives them. Where it does not: bfloat16 with
  float32 parameters, warm-up over 1B tokens and gradients clipped to norm 1, as
  in the training procedure that it follows (Gated DeltaNet's), and blocks
  recomputed in the backward pass.

  Args:
    size: "170m", "340m", "760m" or "1_3b".
    variant: of the model.
    kind: "" for the paper's chunks and heads, "fast" for those that fill a
      matrix unit (`presets.titans_*_fast`).

  Raises:
    ValueError: another size or kind.
  """
  if size not in _RECIPES:
    raise ValueError(f"size must be one of {sorted(_RECIPES)}, got {size!r}.")
  if kind not in ("", "fast"):
    raise ValueError(
        "A pretraining configuration takes ':fast' or nothing behind its file"
        f" name, got {kind!r}."
    )
  recipe = _RECIPES[size]
  preset = getattr(presets, f"titans_{size}" + (f"_{kind}" if kind else ""))
  config = preset(variant, dtype="bfloat16", remat=True, max_grad_norm=1.0)
  model: dict[str, Any] = {
      field.name: getattr(config, field.name)
      for field in dataclasses.fields(config)
  }
  model["memory"] = dataclasses.asdict(config.memory)
  steps = round(recipe.tokens / (_BATCH_SIZE * _LENGTH))
  return overlay.run_config_dict(
      model=model,
      data={
          "source": "data/fineweb_edu",
          "tokenizer": "data/tokenizer.json",
          "sequence_length": _LENGTH,
          "batch_size": _BATCH_SIZE,
          "heldout_fraction": 0.0005,
          "max_heldout_sequences": 512,
      },
      optimizer={
          "learning_rate": recipe.learning_rate,
          "warmup_steps": round(1e9 / (_BATCH_SIZE * _LENGTH)),
      },
      train={
          "num_steps": steps,
          "eval_every": 1000,
          "checkpoint_every": 500,
      },
      parallel={"layout": "fsdp"},
  )


def small_text(max_grad_norm: float | None = None):
  """Returns the configuration of a small LMM on text, two layers of width 64.

  Args:
    max_grad_norm: bound on a token's inner gradient, which memories of more than
      two layers need.
  """
  return overlay.run_config_dict(
      model={
          "variant": "lmm",
          "num_layers": 2,
          "model_dim": 64,
          "num_heads": 2,
          "memory": {"expansion": 2},
          "chunk_size": 16,
          "segment_length": 32,
          "window": 32,
          "num_persistent": 4,
          "max_grad_norm": max_grad_norm,
      },
      data={"sequence_length": 256, "batch_size": 8},
      optimizer={"learning_rate": 3e-3, "warmup_steps": 50},
      train={
          "num_steps": 600,
          "eval_every": 300,
          "checkpoint_every": 300,
          "keep_checkpoints": 1,
      },
  )


# Fields of a model for texts far longer than training's. What was read must
# last: with a bias of -6 half of it is gone after 280 tokens.
LASTING = {"window": 32, "forget_bias": -10.0}


def synthetic(
    data_class,
    *,
    model: dict[str, Any],
    train: dict[str, Any],
    data: dict[str, Any] | None = None,
    warmup_steps: int = 100,
):
  """Returns the configuration of a small run, two layers of width 64.

  Args:
    data_class: of the section `data`.
    model: fields of `TitansConfig` that differ.
    train: fields of `TrainConfig`.
    data: fields of the section `data`.
    warmup_steps: of the optimizer.
  """
  return overlay.run_config_dict(
      model={
          "num_layers": 2,
          "model_dim": 64,
          "num_heads": 2,
          "memory": {"expansion": 2},
          "chunk_size": 16,
          "segment_length": 16,
          "num_persistent": 4,
          "ffn_dim": 128,
          **model,
      },
      data_class=data_class,
      data=data,
      optimizer={
          "learning_rate": 3e-3,
          "warmup_steps": warmup_steps,
          "weight_decay": 0.01,
          "b2": 0.99,
      },
      train={"keep_checkpoints": 1, "log_every": 20, **train},
  )
