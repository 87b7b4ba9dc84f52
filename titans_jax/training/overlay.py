# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Run configurations as `ml_collections` dictionaries, for command lines."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import ml_collections
from ml_collections import config_dict

from titans_jax import memory as memory_lib
from titans_jax.models import config as model_config
from titans_jax.parallel import mesh as mesh_lib
from titans_jax.training import config as config_lib


def run_config_dict(
    *,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    parallel: dict[str, Any] | None = None,
    seed: int = 0,
    data_class=config_lib.DataConfig,
) -> ml_collections.ConfigDict:
  """Returns every field of a run, with other values where given.

  A field that may be None can be set to None and to a value from the command
  line; its type is checked by `run_config`.

  Args:
    model: fields of `TitansConfig`; `memory` a dictionary of fields of `MLP`.
      vocab_size is the tokenizer's unless it is given.
    data: fields of `DataConfig`.
    optimizer: fields of `OptimizerConfig`.
    train: fields of `TrainConfig`.
    parallel: fields of `ParallelConfig`.
    seed: of the run.
    data_class: of the section `data`, for another task than text.
  """
  model = dict(model or {})
  net = _section(memory_lib.MLP, model.pop("memory", {}))
  fields = _section(model_config.TitansConfig, model, skip=("memory",))
  if "vocab_size" not in model:
    fields["vocab_size"] = config_dict.placeholder(object)
  mesh = dict(parallel or {})
  rules = mesh_lib.ParallelConfig(rules=mesh.pop("rules", {})).rules
  mesh = _section(mesh_lib.ParallelConfig, mesh, skip=("rules",))
  return ml_collections.ConfigDict(
      {
          "model": {**fields, "memory": net},
          "data": _section(data_class, data or {}),
          "optimizer": _section(config_lib.OptimizerConfig, optimizer or {}),
          "train": _section(config_lib.TrainConfig, train or {}),
          "parallel": {**mesh, "rules": rules},
          "seed": seed,
      }
  )


def run_config(
    values: ml_collections.ConfigDict,
    default_vocab_size: int,
    data_class=config_lib.DataConfig,
) -> config_lib.RunConfig:
  """Returns the run that a dictionary of `run_config_dict` describes.

  Raises:
    ValueError: values of another type than their field's, or out of range.
  """
  values = values.to_dict()
  _check_optional(model_config.TitansConfig, "model", values["model"])
  _check_optional(data_class, "data", values["data"])
  _check_optional(config_lib.TrainConfig, "train", values["train"])
  _check_optional(mesh_lib.ParallelConfig, "parallel", values["parallel"])
  if values["model"]["vocab_size"] is None:
    values["model"]["vocab_size"] = default_vocab_size
  return config_lib.run_config(values, data_class)


def _section(cls, values: dict[str, Any], skip=()) -> dict[str, Any]:
  """Returns a dataclass's fields, None as a placeholder of their type."""
  hints = typing.get_type_hints(cls)
  section = {}
  for field in dataclasses.fields(cls):
    if field.name in skip:
      continue
    value = values.get(field.name, field.default)
    if isinstance(hints[field.name], types.UnionType):
      value = config_dict.FieldReference(value, field_type=object)
    elif hints[field.name] is float:
      value = float(value)
    section[field.name] = value
  unknown = sorted(set(values) - set(section))
  if unknown:
    raise ValueError(
        f"{cls.__name__} has no field {unknown[0]!r}; it has"
        f" {sorted(section)}."
    )
  return section


def _check_optional(cls, section: str, values: dict[str, Any]) -> None:
  """Raises ValueError where an optional field holds another type than its own."""
  hints = typing.get_type_hints(cls)
  for name, value in values.items():
    hint = hints.get(name)
    if not isinstance(hint, types.UnionType) or value is None:
      continue
    (kind,) = set(typing.get_args(hint)) - {type(None)}
    if kind is float and type(value) is int:
      value = float(value)
    if type(value) is not kind:
      raise ValueError(
          f"--config.{section}.{name} must be {kind.__name__} or None, got"
          f" {value!r}."
      )
