# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretrains a language model, or goes on with one.

    python -m experiments.pretrain --config=experiments/configs/quickstart.py \
        --workdir=runs/quickstart [--config.model.variant=mag] \
        [--config.data.source='texts/*.txt']

The same command resumes a run that was stopped. The workdir gets config.json,
metrics.jsonl, TensorBoard events, checkpoints/ and learning_curve.png.
"""

import shlex
import sys

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import inference
from titans_jax.evaluation import bigram
from titans_jax.training import checkpoints
from titans_jax.training import trainer

from . import _flags

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder that holds the run.", required=True
)
_PROMPT = flags.DEFINE_string(
    "prompt", "The ", "Text that the sample at the end begins with."
)
_SAMPLE_TOKENS = flags.DEFINE_integer(
    "sample_tokens", 300, "Tokens to sample at the end.", lower_bound=0
)
_CONFIG = _flags.define_config("quickstart.py")


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(checkpoints.CheckpointError,
                           trainer.NonFiniteLossError):
    run = _flags.run_config(_CONFIG.value)
    result = trainer.train(run, _WORKDIR.value)
  if result.finished:
    _report(result)


def _report(result: trainer.Result) -> None:
  """Prints what the model is worth, what it writes, and how to go on."""
  ours = result.evaluation["eval_bits_per_byte"]
  baseline = bigram.bits_per_byte(result.corpus, result.tokenizer)
  print(
      f"\nHeld-out bits per byte: {ours:.4f}; a bigram byte model:"
      f" {baseline:.4f} ({1 - ours / baseline:.1%} less)."
  )
  if _SAMPLE_TOKENS.value:
    prompt = result.tokenizer.encode(_PROMPT.value.encode())
    prompt = np.concatenate([[result.corpus.document_token], prompt])
    tokens = inference.generate(
        result.model,
        {"params": result.params},
        jnp.asarray(prompt[None], jnp.int32),
        max_new_tokens=_SAMPLE_TOKENS.value,
        rng=jax.random.key(0),
        temperature=0.8,
    )
    text = result.tokenizer.decode(tokens[0]).decode(errors="replace")
    print(f"\nA sample:\n\n{_PROMPT.value}{text}\n")
  _next_commands()


def _next_commands() -> None:
  workdir = _WORKDIR.value
  here = [a for a in sys.argv[1:] if not a.startswith(("--workdir", "-workdir"))]
  python = f"{shlex.quote(sys.executable)} -m"
  command = f"{python} {_flags.module('pretrain')} {shlex.join(here)}".rstrip()
  print(
      f"""Checkpoints: {workdir}/checkpoints
Learning curve: {workdir}/learning_curve.png
Curves in TensorBoard: tensorboard --logdir={workdir}

To go on:
  sample         {python} {_flags.module('generate')} --checkpoint={workdir} --prompt='The '
  resume         the same command again, if it was stopped
  other variant  {command} --workdir={workdir}-mag --config.model.variant=mag
  own text       {command} --workdir={workdir}-mine --config.data.source=FILE"""
  )


if __name__ == "__main__":
  app.run(main)
