# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Pretrains a language model, or goes on with one.

    python -m experiments.pretrain --config=experiments/configs/quickstart.py \
        --workdir=runs/quickstart [--config.model.variant=mag] \
        [--config.data.source='texts/*.txt']

The same command resumes a run that was stopped. The workdir gets config.json,
metrics.jsonl, TensorBoard events, checkpoints/ and learning_curve.png.
"""

import pathlib
import shlex
import sys

from absl import app
from absl import flags
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import data
from titans_jax import files
from titans_jax import inference
from titans_jax.evaluation import bigram
from titans_jax.models import language_model
from titans_jax.parallel import distributed
from titans_jax.training import checkpoints
from titans_jax.training import overlay
from titans_jax.training import tasks
from titans_jax.training import trainer

from . import _flags

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder that holds the run, or gs://....", required=True
)
_PROMPT = flags.DEFINE_string(
    "prompt", "The ", "Text that the sample at the end begins with."
)
_SAMPLE_TOKENS = flags.DEFINE_integer(
    "sample_tokens", 300, "Tokens to sample at the end.", lower_bound=0
)
_INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Workdir of another run, whose parameters this one begins with.",
)
_join_processes = _flags.define_processes()
_CONFIG = _flags.define_config("quickstart.py")


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(
      checkpoints.CheckpointError,
      distributed.ProcessesError,
      trainer.NonFiniteLossError,
  ):
    _join_processes()
    tokenizer = data.make_tokenizer(_CONFIG.value.data.tokenizer)
    run = overlay.run_config(_CONFIG.value, tokenizer.vocab_size)
    if run.model.vocab_size < tokenizer.vocab_size:
      raise ValueError(
          f"model.vocab_size={run.model.vocab_size} is smaller than the"
          f" tokenizer's {tokenizer.vocab_size} tokens."
      )
    trainer.check_same_run(run, epath.Path(_WORKDIR.value), _INIT_FROM.value)
    cache_dir = _cache_dir(run.data.cache_dir)
    with distributed.main_first("the data is prepared"):
      corpus = tasks.prepare_corpus(run, tokenizer, cache_dir)
    distributed.say(corpus.summary())
    model = language_model.TitansLM(run.model)
    task = tasks.TextTask(
        model,
        corpus,
        batch_size=run.data.batch_size,
        seed=run.seed,
        segments=run.data.segments,
    )
    result = trainer.train(run, _WORKDIR.value, model, task, _INIT_FROM.value)
  if result.finished and distributed.is_main():
    _report_quality(result.evaluation, corpus, tokenizer)
    if _SAMPLE_TOKENS.value and jax.process_count() == 1:
      _report_sample(model, result.params, tokenizer)
    _report_next_commands(run.model.variant)


def _cache_dir(chosen: str | None) -> pathlib.Path:
  """Returns the folder of the tokenised text, which is mapped into memory."""
  if chosen is not None:
    return _flags.local_folder("config.data.cache_dir", chosen)
  if files.is_remote(_WORKDIR.value):
    raise ValueError(
        f"With --workdir={_WORKDIR.value} give --config.data.cache_dir, a local"
        " folder for the tokenised text."
    )
  return pathlib.Path(_WORKDIR.value) / "data"


# A larger corpus would keep every host waiting for a baseline.
_MOST_TOKENS_FOR_BIGRAMS = 10**8


def _report_quality(evaluation, corpus, tokenizer) -> None:
  ours = evaluation["eval_bits_per_byte"]
  if corpus.train.num_tokens > _MOST_TOKENS_FOR_BIGRAMS:
    print(f"\nHeld-out bits per byte: {ours:.4f}.")
    return
  baseline = bigram.bits_per_byte(corpus, tokenizer)
  print(
      f"\nHeld-out bits per byte: {ours:.4f}; a bigram byte model:"
      f" {baseline:.4f} (ours is {1 - ours / baseline:.1%} less)."
  )


def _report_sample(model, params, tokenizer) -> None:
  prompt = tokenizer.encode(_PROMPT.value.encode())
  prompt = np.concatenate([[tokenizer.document_token], prompt])
  tokens = inference.generate(
      model,
      {"params": params},
      jnp.asarray(prompt[None], jnp.int32),
      max_new_tokens=_SAMPLE_TOKENS.value,
      rng=jax.random.key(0),
      temperature=0.8,
      stop_token=tokenizer.document_token,
  )
  text = tokenizer.decode(tokens[0]).decode(errors="replace")
  print(f"\nA sample:\n\n{_PROMPT.value}{text}\n")


def _report_next_commands(variant: str) -> None:
  workdir = shlex.quote(_WORKDIR.value)
  here = _without_workdir(sys.argv[1:])
  python = f"{shlex.quote(sys.executable)} -m"
  command = f"{python} {_flags.module('pretrain')} {shlex.join(here)}".rstrip()
  other = "mal" if variant == "mag" else "mag"
  print(
      f"""Checkpoints: {workdir}/checkpoints
Learning curve: {workdir}/learning_curve.png
Curves in TensorBoard: tensorboard --logdir={workdir}

To go on:
  sample         {python} {_flags.module('generate')} --checkpoint={workdir} --prompt='The '
  resume         the same command again, if it was stopped
  other variant  {command} --workdir={workdir}-{other} --config.model.variant={other}
  own text       {command} --workdir={workdir}-mine --config.data.source=FILE"""
  )


def _without_workdir(arguments: list[str]) -> list[str]:
  """Returns a command line's arguments but --workdir and its value."""
  kept, arguments = [], list(arguments)
  while arguments:
    argument = arguments.pop(0)
    if argument in ("--workdir", "-workdir"):
      del arguments[:1]
    elif not argument.startswith(("--workdir=", "-workdir=")):
      kept.append(argument)
  return kept


if __name__ == "__main__":
  app.run(main)
