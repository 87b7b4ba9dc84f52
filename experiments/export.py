# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as a folder in the Hugging Face form (extra `hf`).

    python -m experiments.export --checkpoint=runs/mac --output=exported/mac

Writes safetensors, config.json, the tokenizer and a model card: what
`titans.load` reads, and --checkpoint of experiments.generate,
experiments.stream and experiments.evaluate takes. The optimizer's state is left out.
"""

from __future__ import annotations

from absl import app
from absl import flags

from titans_jax import inference
from titans_jax.training import checkpoints

from . import _checkpoint
from . import _flags

_CHECKPOINT, _STEP = _checkpoint.define_flags()
_OUTPUT = flags.DEFINE_string(
    "output", None, "New folder for the model.", required=True
)


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(checkpoints.CheckpointError):
    output = _flags.local_folder("output", _OUTPUT.value)
    trained = _checkpoint.load(_CHECKPOINT.value, _STEP.value)
    if trained.step is None:
      raise ValueError(f"--checkpoint={_CHECKPOINT.value} is exported already.")
    inference.export(
        output,
        trained.model,
        trained.variables,
        trained.data["tokenizer"],
    )
    print(f"In {_OUTPUT.value}: the model of step {trained.step}.")


if __name__ == "__main__":
  app.run(main)
