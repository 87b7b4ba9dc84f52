# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models by name: the variants, baselines, and the rows of the paper's Table 5."""

from __future__ import annotations

from typing import Any

from titans_jax.models import config as model_config

# Fields of the model that make a row of the ablation what it is, all else being
# that of LMM: the paper's rows ("no forgetting" is its "w/o weight decay"), then
# those of this project's decisions.
ABLATIONS: dict[str, dict[str, Any]] = {
    "lmm": {},
    "mac": {"variant": "mac"},
    "mag": {"variant": "mag"},
    "mal": {"variant": "mal"},
    "linear memory": {
        "memory.depth": 1,
        "memory.residual": False,
        "memory.norm": False,
    },
    "no convolution": {"conv_size": 0},
    "no momentum": {"momentum": False},
    "no forgetting": {"forget": "none"},
    "no persistent tokens": {"num_persistent": 0},
    "gates shared by layers": {"gates_per_layer": False},
    "forgetting per channel": {"forget": "channel"},
    "no residual": {"memory.residual": False},
    "no norm": {"memory.norm": False},
    "raw values": {"normalize_values": False},
    "read before write": {"read_before_write": True},
    "chunks of 4": {"chunk_size": 4},
    "chunks of 8": {"chunk_size": 8},
}

# Other models: "linear" is a linear memory without momentum, "windowed" attention
# alone over model.window.
OTHERS: dict[str, dict[str, Any]] = {
    "linear": {
        "variant": "lmm",
        "momentum": False,
        **ABLATIONS["linear memory"],
    },
    "windowed": {"variant": "transformer"},
}

NAMES = (*model_config.VARIANTS, *OTHERS)


def choose(model, name: str, max_length: int) -> None:
  """Sets a configuration's section `model` to a model of `NAMES`.

  Args:
    model: the section.
    name: of the model. "transformer" sees all tokens, without persistent ones.
    max_length: tokens that full attention has to hold.
  """
  if name == "transformer":
    fields = {
        "variant": name,
        "window": None,
        "num_persistent": 0,
        "max_length": max_length,
    }
  else:
    fields = OTHERS.get(name, {"variant": name})
  change(model, fields)


def change(model, fields: dict[str, Any]) -> None:
  """Sets fields of a configuration's section `model`, by their paths."""
  for path, value in fields.items():
    *sections, name = path.split(".")
    section = model
    for inner in sections:
      section = section[inner]
    section[name] = value
