# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""States in files: a document is read once and asked many times."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import files
from titans_jax.models import checksums
from titans_jax.models import config as model_config
from titans_jax.models import language_model
from titans_jax.models import states

# Increased when the file changes its form, or the state its meaning.
_VERSION = 1

# How a model is computed, not what: other values read the same states.
_HOW = ("implementation", "remat", "checkpoint_every")


def save_state(
    path: str | os.PathLike[str],
    state: language_model.State,
    model: language_model.TitansLM,
    variables: Any,
) -> None:
  """Writes a state to a file, whole or not at all.

  Args:
    path: of the file; one that is there is replaced.
    state: behind a call of the model.
    model: that made it.
    variables: its parameters, of which the file gets a checksum.
  """
  leaves = [
      (jax.tree_util.keystr(where), np.asarray(leaf))
      for where, leaf in jax.tree_util.tree_leaves_with_path(state)
  ]
  about = _about(model, variables) | {
      "rows": states.num_rows(state),
      "leaves": [[name, x.dtype.name, x.shape] for name, x in leaves],
  }
  arrays = {
      str(i): np.ascontiguousarray(x).view(np.uint8)
      for i, (_, x) in enumerate(leaves)
  }
  with files.replacing(pathlib.Path(path)) as file:
    np.savez(
        file,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        **arrays,
    )


def load_state(
    path: str | os.PathLike[str],
    model: language_model.TitansLM,
    variables: Any,
) -> language_model.State:
  """Returns the state that `save_state` wrote.

  Args:
    path: of the file.
    model: of the same configuration as the one that made the state.
    variables: the same parameters.

  Raises:
    ValueError: no such file or a damaged one; a state of another version, model
      or parameters.
  """
  try:
    with np.load(path) as saved:
      about = json.loads(saved["about"].tobytes())
      if about.get("format_version") != _VERSION:
        raise ValueError(
            f"it has format version {about.get('format_version')}, but this"
            f" program reads version {_VERSION}"
        )
      arrays = [
          saved[str(i)].view(jnp.dtype(dtype)).reshape(shape)
          for i, (_, dtype, shape) in enumerate(about["leaves"])
      ]
  except (
      OSError,
      EOFError,
      KeyError,
      ValueError,
      TypeError,
      zipfile.BadZipFile,
  ) as error:
    raise ValueError(f"{path} is no whole state: {error}.") from error
  _check(about, _about(model, variables), path)
  like = jax.eval_shape(
      lambda v: model.init_state(v, batch_size=about["rows"]), variables
  )
  for (where, leaf), array in zip(
      jax.tree_util.tree_leaves_with_path(like), arrays, strict=True
  ):
    if (leaf.shape, leaf.dtype) != (array.shape, array.dtype):
      raise ValueError(
          f"{path}: {jax.tree_util.keystr(where)} is {array.dtype}"
          f" {array.shape}, where this model has {leaf.dtype} {leaf.shape}."
      )
  return jax.tree.unflatten(
      jax.tree.structure(like), [jnp.asarray(x) for x in arrays]
  )


def _about(model, variables) -> dict[str, Any]:
  """Returns what tells whether a state belongs to a model."""
  fields = dataclasses.asdict(model.config)
  for name in _HOW:
    del fields[name]
  sums = json.dumps(checksums.checksums(variables["params"]), sort_keys=True)
  return {
      "format_version": _VERSION,
      "model": json.loads(json.dumps(fields)),
      "parameters": hashlib.sha256(sums.encode()).hexdigest(),
  }


def _check(saved, here, path) -> None:
  # A field that there was not yet had its default.
  fields = dataclasses.fields(model_config.TitansConfig)
  defaults = {field.name: field.default for field in fields}
  for name in sorted(set(saved["model"]) | set(here["model"])):
    there = saved["model"].get(name, defaults.get(name))
    wanted = here["model"].get(name)
    if there != wanted:
      raise ValueError(
          f"{path} is the state of another model: its {name} is {there!r}, this"
          f" model's {wanted!r}."
      )
  if saved["parameters"] != here["parameters"]:
    raise ValueError(
        f"{path} is the state of a model with other parameters: a memory means"
        " something to those alone that wrote it."
    )
