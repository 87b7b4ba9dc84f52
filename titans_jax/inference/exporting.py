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

from titans_jax import memory
from titans_jax.data import tokenizers
from titans_jax.models import config as model_config
from titans_jax.models import language_model

# Increased when the folder changes its form, or a parameter its meaning.
_VERSION = 1

_CONFIG = "config.json"
_PARAMS = "model.safetensors"
_TOKENIZER = "tokenizer.json"
_MODEL_TYPE = "titans_jax"


def export(
    directory: str | os.PathLike[str],
    model: language_model.TitansLM,
    variables: Any,
    tokenizer: str = "byte",
) -> None:
  """Writes a model into a new folder, whole or not at all.

  Needs the extra `hf`. The parameters are written from where they are, without
  another copy of them all.

  Args:
    directory: that does not exist yet, or is empty.
    model: the model.
    variables: its parameters, on this process's devices.
    tokenizer: that it was trained with: "byte", or a tokenizer.json.

  Raises:
    ValueError: the folder holds files, the tokenizer has ids that the
      vocabulary has not, or the memory is a network of the caller's own.
    ImportError: without the extra.
  """
  flax_tensors = _safetensors().flax
  directory = pathlib.Path(directory)
  if directory.exists() and (
      not directory.is_dir() or any(directory.iterdir())
  ):
    raise ValueError(f"{directory} is not empty: give a new folder.")
  if not isinstance(model.config.memory, memory.MLP):
    raise ValueError(
        f"Only models with titans.memory.MLP can be exported, not with"
        f" {model.config.memory!r}."
    )
  _check_tokenizer(
      tokenizers.make_tokenizer(tokenizer), model.config, tokenizer
  )
  about = {
      "model_type": _MODEL_TYPE,
      "architectures": [type(model).__name__],
      "format_version": _VERSION,
      "tokenizer": "byte" if tokenizer == "byte" else _TOKENIZER,
      "model": dataclasses.asdict(model.config),
  }
  params = _by_name(variables["params"])
  part = directory.with_name(f"{directory.name}.{uuid.uuid4().hex[:12]}.part")
  try:
    part.mkdir(parents=True)
    flax_tensors.save_file(
        dict(params), part / _PARAMS, metadata={"format": "flax"}
    )
    if tokenizer != "byte":
      shutil.copyfile(tokenizer, part / _TOKENIZER)
    card = _card(model.config, sum(x.size for x in params.values()))
    for name, text in ((_CONFIG, json.dumps(about, indent=2)), *card.items()):
      (part / name).write_text(text, encoding="utf-8")
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
    **overrides: fields of the configuration that say how the model is computed
      (`dtype`, `implementation`, `remat`), not what its parameters are.

  Raises:
    ValueError: no such folder or a damaged one, another format version,
      parameters or a tokenizer that do not fit the configuration.
    ImportError: without the extra.
  """
  safetensors = _safetensors()
  directory = pathlib.Path(directory)
  about = _read_config(directory / _CONFIG)
  config = dataclasses.replace(
      model_config.make_config(about["model"]), **overrides
  )
  model = language_model.TitansLM(config)
  like = _by_name(
      jax.eval_shape(
          lambda: model.init(jax.random.key(0), **model.init_inputs())
      )["params"]
  )
  path = directory / _PARAMS
  try:
    with safetensors.safe_open(path, framework="flax") as file:
      if set(file.keys()) != set(like):
        wrong = sorted(set(file.keys()) ^ set(like))[0]
        raise ValueError(
            f"{path} does not fit its {_CONFIG}: {wrong} is only in one of them."
        )
      params = {}
      for name, expected in like.items():
        shape = tuple(file.get_slice(name).get_shape())
        if shape != expected.shape:
          raise ValueError(
              f"{path} does not fit its {_CONFIG}: {name} is {shape}, where the"
              f" model has {expected.shape}."
          )
        params[name] = jnp.asarray(file.get_tensor(name), expected.dtype)
  except (OSError, safetensors.SafetensorError) as error:
    raise ValueError(f"{path} cannot be read: {error}.") from error
  name = about["tokenizer"]
  if name != "byte":
    name = str(directory / name)
  tokenizer = tokenizers.make_tokenizer(name)
  _check_tokenizer(tokenizer, config, name)
  params = traverse_util.unflatten_dict(params, sep=".")
  return model, {"params": params}, tokenizer


def _safetensors():
  try:
    import safetensors.flax  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ImportError(
        "Exported models need the `safetensors` package: pip install"
        " 'titans-jax[hf]'."
    ) from error
  return safetensors


def _by_name(params: Any) -> dict[str, Any]:
  return traverse_util.flatten_dict(params, sep=".")


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  try:
    about = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} cannot be read: {error}.") from error
  if about.get("model_type") != _MODEL_TYPE:
    raise ValueError(
        f"{path} describes a model of the type {about.get('model_type')!r}, not"
        f" {_MODEL_TYPE!r}."
    )
  if about.get("format_version") != _VERSION:
    raise ValueError(
        f"{path} has format version {about.get('format_version')}, but this"
        f" program reads version {_VERSION}."
    )
  return about


def _check_tokenizer(tokenizer, config, name: str) -> None:
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
        f"The tokenizer {name} has ids up to {tokenizer.vocab_size - 1}, but the"
        f" model's vocab_size is {config.vocab_size}."
    )


def _card(config: model_config.TitansConfig, size: int) -> dict[str, str]:
  """Returns the model card, which is named README.md there."""
  text = f"""\
---
library_name: titans_jax
tags:
- titans
- jax
---

# Titans ({config.variant.upper()}), {size:,} parameters

A language model with a neural long-term memory that learns while it reads
("Titans: Learning to Memorize at Test Time", arXiv 2501.00663).

| | |
| --- | --- |
| variant | {config.variant} |
| blocks | {config.num_layers} |
| width | {config.model_dim} |
| heads | {config.num_heads} of {config.head_dim} |
| vocabulary | {config.vocab_size:,} |
| parameters' dtype | {config.param_dtype} |

```python
import titans_jax as titans

model, variables, tokenizer = titans.load("PATH")
prompt = tokenizer.encode(b"Once upon a time")[None]
tokens = titans.generate(model, variables, prompt, max_new_tokens=64)
print(tokenizer.decode(tokens[0]).decode())
```
"""
  return {"README.md": text}
