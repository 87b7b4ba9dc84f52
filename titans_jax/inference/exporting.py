# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models as folders in the Hugging Face form.

A folder holds `config.json` (the model's configuration and a format version),
`model.safetensors` (every parameter, by its path), the tokenizer (a
`tokenizer.json`, or its name in config.json) and a model card.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any
import uuid

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import files
from titans_jax import memory
from titans_jax import tokenizers
from titans_jax.models import config as model_config
from titans_jax.models import language_model

# Increased when the folder changes its form, or a parameter its meaning.
FORMAT_VERSION = 1

_CONFIG = "config.json"
_PARAMS = "model.safetensors"
_TOKENIZER = "tokenizer.json"
_MODEL_TYPE = "titans_jax"

# Fields that say how a model is computed, not what.
_HOW = ("dtype", "implementation", "remat", "checkpoint_every")


def export(
    directory: str | os.PathLike[str],
    model: language_model.TitansLM,
    variables: Any,
    tokenizer: str = "byte",
) -> None:
  """Writes a model into a new folder, whole or not at all.

  Needs the extra `hf`. Parameters in the main memory are written from where they
  are; those of an accelerator are copied there first.

  Args:
    directory: that does not exist yet, or is empty.
    model: the model.
    variables: its parameters, on this process's devices.
    tokenizer: that it was trained with: "byte", or a tokenizer.json.

  Raises:
    ValueError: the folder holds files or is in a bucket, parameters that are
      not the model's, a tokenizer with ids that the vocabulary has not, or a
      memory network of the caller's own.
    ImportError: without the extra.
  """
  save_file = _safetensors().numpy.save_file
  directory = _local(directory)
  if directory.exists() and (
      not directory.is_dir() or any(directory.iterdir())
  ):
    raise ValueError(f"{directory} is not empty: give a new folder.")
  config = model.config
  if not isinstance(config.memory, memory.MLP):
    raise ValueError(
        "Only models with titans.memory.MLP can be exported, not with"
        f" {config.memory!r}."
    )
  tokenizers.check_vocabulary(
      tokenizers.make_tokenizer(tokenizer), config.vocab_size
  )
  params = _by_name(variables["params"])
  shapes = {name: x.shape for name, x in params.items()}
  _check_params(shapes, _expected(model), "The variables are another model's")
  # The format has rows only: what lies otherwise is laid out anew.
  arrays = {name: np.ascontiguousarray(x) for name, x in params.items()}
  about = {
      "model_type": _MODEL_TYPE,
      "architectures": [type(model).__name__],
      "format_version": FORMAT_VERSION,
      "tokenizer": "byte" if tokenizer == "byte" else _TOKENIZER,
      "model": dataclasses.asdict(config),
  }
  card = _card(config, sum(x.size for x in arrays.values()))
  part = directory.with_name(f"{directory.name}.{uuid.uuid4().hex[:12]}.part")
  try:
    part.mkdir(parents=True)
    save_file(arrays, part / _PARAMS, metadata={"format": "flax"})
    if tokenizer != "byte":
      shutil.copyfile(tokenizer, part / _TOKENIZER)
    (part / _CONFIG).write_text(json.dumps(about, indent=2), encoding="utf-8")
    (part / "README.md").write_text(card, encoding="utf-8")
    if directory.exists():
      directory.rmdir()
    part.rename(directory)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def is_exported(directory: str | os.PathLike[str]) -> bool:
  """Returns whether a folder holds the parameters of an exported model."""
  return (pathlib.Path(directory) / _PARAMS).is_file()


def load(
    directory: str | os.PathLike[str], **overrides: Any
) -> tuple[language_model.TitansLM, dict[str, Any], tokenizers.Tokenizer]:
  """Returns the model that `export` wrote, its variables and its tokenizer.

  Needs the extra `hf`.

  Args:
    directory: the folder.
    **overrides: fields of the configuration that say how the model is computed:
      dtype, implementation, remat, checkpoint_every.

  Raises:
    ValueError: no such folder or a damaged one, another format version,
      parameters or a tokenizer that do not fit the configuration, or an override
      that would make it another model.
    ImportError: without the extra.
  """
  safetensors = _safetensors()
  for name in overrides:
    if name not in _HOW:
      raise ValueError(f"{name} cannot be chosen here: only {_HOW} can.")
  directory = _local(directory)
  config, tokenizer_name = _read_config(directory / _CONFIG)
  config = dataclasses.replace(config, **overrides)
  model = language_model.TitansLM(config)
  like = _expected(model)
  path = directory / _PARAMS
  try:
    with safetensors.safe_open(path, framework="flax") as file:
      names = list(file.keys())
      shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    _check_params(shapes, like, f"{path} does not fit its {_CONFIG}")
    params = {}
    for name, expected in like.items():
      # Opened anew: what was read of the file leaves the memory.
      with safetensors.safe_open(path, framework="flax") as file:
        params[name] = jnp.asarray(file.get_tensor(name), expected.dtype)
  except (OSError, safetensors.SafetensorError) as error:
    raise ValueError(f"{path} cannot be read: {error}.") from error
  if tokenizer_name != "byte":
    tokenizer_name = str(directory / tokenizer_name)
    if not os.path.isfile(tokenizer_name):
      raise ValueError(f"{tokenizer_name}, the model's tokenizer, is missing.")
  tokenizer = tokenizers.make_tokenizer(tokenizer_name)
  tokenizers.check_vocabulary(tokenizer, config.vocab_size)
  params = traverse_util.unflatten_dict(params, sep=".")
  return model, {"params": params}, tokenizer


def _safetensors():
  try:
    import safetensors.numpy  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ImportError(
        "Exported models need the `safetensors` package: pip install"
        " 'titans-jax[hf]'."
    ) from error
  return safetensors


def _local(directory: str | os.PathLike[str]) -> pathlib.Path:
  if files.is_remote(directory):
    raise ValueError(
        f"{directory} is in a bucket, and an exported model is a local folder:"
        " copy it."
    )
  return pathlib.Path(directory)


def _by_name(params: Any) -> dict[str, Any]:
  return traverse_util.flatten_dict(params, sep=".")


def _expected(model: language_model.TitansLM) -> dict[str, Any]:
  """Returns the shapes of a model's parameters, by name."""
  shapes = jax.eval_shape(
      lambda: model.init(jax.random.key(0), **model.init_inputs())
  )
  return _by_name(shapes["params"])


def _check_params(shapes, like, complaint: str) -> None:
  """Raises ValueError where shapes are not those of a model's parameters."""
  for name in sorted(set(shapes) | set(like)):
    here = shapes.get(name, "missing")
    wanted = like[name].shape if name in like else "none"
    if here != wanted:
      raise ValueError(
          f"{complaint}: {name} is {here}, where the model has {wanted}."
      )


def _read_config(path: pathlib.Path) -> tuple[model_config.TitansConfig, str]:
  """Returns the configuration, and the tokenizer's name."""
  try:
    about = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(about, dict):
      raise ValueError("it holds no object")
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} cannot be read: {error}.") from error
  if about.get("model_type") != _MODEL_TYPE:
    raise ValueError(
        f"{path} describes a model of the type {about.get('model_type')!r}, not"
        f" {_MODEL_TYPE!r}."
    )
  if about.get("format_version") != FORMAT_VERSION:
    raise ValueError(
        f"{path} has format version {about.get('format_version')}, but this"
        f" program reads version {FORMAT_VERSION}."
    )
  try:
    return model_config.make_config(about["model"]), str(about["tokenizer"])
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
        f"{path} describes no model: {type(error).__name__}: {error}."
    ) from error


def _card(config: model_config.TitansConfig, size: int) -> str:
  """Returns the model card."""
  kind = (
      "The baseline of attention alone, as it is built beside Titans"
      if config.variant == "transformer"
      else "A language model with a neural long-term memory that learns while it"
      " reads"
  )
  return f"""\
---
library_name: titans_jax
tags:
- titans
- jax
---

# Titans ({config.variant}), {size:,} parameters

{kind} ("Titans: Learning to Memorize at Test Time", arXiv 2501.00663).

| | |
| --- | --- |
| variant | {config.variant} |
| blocks | {config.num_layers} |
| width | {config.model_dim} |
| heads | {config.num_heads} of {config.head_dim} |
| vocabulary | {config.vocab_size:,} |
| parameters' dtype | {config.param_dtype} |

```python
import jax
import numpy as np
import titans_jax as titans

model, variables, tokenizer = titans.load("PATH")
prompt = [tokenizer.document_token, *tokenizer.encode(b"Once upon a time")]
tokens = titans.generate(
    model,
    variables,
    np.array([prompt], np.int32),
    max_new_tokens=64,
    rng=jax.random.key(0),
)
print(tokenizer.decode(tokens[0]).decode(errors="replace"))
```
"""
