# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""The memory's depth against perplexity and speed (the paper's Figures 7 and 8).

    python -m experiments.depth --workdir=runs/depth \
        --config.data.source=book.txt

Trains LMM with memories of one to four layers on text, at every sequence length
with the same tokens in a step, with several seeds; and times their training steps
in turns. Writes results.json (held-out perplexity, tokens/s and their ratio to
one layer's) and depth.png. A run that was stopped goes on.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from absl import app
from absl import flags
import numpy as np

from pallas_kernels import command_line
from titans_jax import data as data_lib
from titans_jax.training import checkpoints
from titans_jax.training import config as config_lib
from titans_jax.training import metrics
from titans_jax.training import overlay
from titans_jax.training import tasks

from . import _flags
from . import _paper
from . import _results
from . import _text
from . import _timing

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder that holds the runs.", required=True
)
_DEPTHS = flags.DEFINE_list("depths", "1,2,3,4", "Layers of the memory.")
_LENGTHS = flags.DEFINE_list("lengths", "256,1024", "Tokens of a sequence.")
_SEEDS = flags.DEFINE_integer(
    "seeds", 3, "Runs of each, with other seeds.", lower_bound=1
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Times that every step is timed.", lower_bound=1
)
_SMOKE = flags.DEFINE_bool("smoke", False, "Trains a few steps only.")
_CONFIG = _flags.define_config("depth.py")


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(checkpoints.CheckpointError):
    depths = command_line.positive_integers("depths", _DEPTHS.value)
    lengths = command_line.positive_integers("lengths", _LENGTHS.value)
    _flags.refuse_overrides(
        "beside --depths", "model.variant", "model.memory.depth"
    )
    values = _CONFIG.value.copy_and_resolve_references()
    values.model.variant = "lmm"
    if _SMOKE.value:
      _flags.shorten(values)
    sequences = _text.cut(values, lengths)
    runs = {
        (length, depth, seed): _run(values, depth, length, count, seed)
        for length, count in sequences.items()
        for depth in depths
        for seed in range(_SEEDS.value)
    }
    folder = _flags.local_folder("workdir", _WORKDIR.value) / "data"
    tokenizer = data_lib.make_tokenizer(values.data.tokenizer)
    corpora = {
        length: tasks.prepare_corpus(
            runs[length, depths[0], 0], tokenizer, folder / str(length)
        )
        for length in lengths
    }
    results = _results.Results(
        _WORKDIR.value,
        "depth",
        {
            **_results.config_settings(values),
            "corpora": [c.fingerprint for c in corpora.values()],
            "rounds": _ROUNDS.value,
            "device": command_line.describe(command_line.device()),
        },
        _tables,
        {
            "perplexity": _paper.DEPTH_PERPLEXITY,
            "throughput": _paper.DEPTH_THROUGHPUT,
        },
    )
    for length in lengths:
      _time(length, {d: runs[length, d, 0] for d in depths}, results)
    for (length, depth, seed), run in runs.items():
      perplexity = results.models[_name(depth)][str(length)]["perplexity"]
      if str(seed) in perplexity:
        continue
      name = f"depth_{depth}_length_{length}_{seed}"
      print(f"\n{name}:", flush=True)
      train = functools.partial(
          _text.perplexity, corpora[length], run, results.workdir / name
      )
      if not _results.add_seed(perplexity, seed, train):
        return
      results.write()
      _plot(results.models, results.workdir / "depth.png")
  results.print_tables()


def _name(depth: int) -> str:
  return f"{depth} layers" if depth > 1 else "1 layer"


def _run(
    values, depth: int, length: int, count: int, seed: int
) -> config_lib.RunConfig:
  values = values.copy_and_resolve_references()
  values.model.memory.depth = depth
  values.data.sequence_length = length
  values.data.batch_size = count
  values.seed += seed
  tokenizer = data_lib.make_tokenizer(values.data.tokenizer)
  return overlay.run_config(values, tokenizer.vocab_size)


def _time(
    length: int,
    runs: dict[int, config_lib.RunConfig],
    results: _results.Results,
) -> None:
  """Times all depths at a length, if one of them was not timed yet."""
  if all(str(length) in results.models.get(_name(depth), {}) for depth in runs):
    return
  named = {_name(depth): run for depth, run in runs.items()}
  rounds = 1 if _SMOKE.value else _ROUNDS.value
  timed = _timing.time_steps(named, rounds, next(iter(named)))
  for name, found in timed.items():
    at = results.models.setdefault(name, {}).setdefault(str(length), {})
    at.update(found)
    at.setdefault("perplexity", {})
  results.write()


def _plot(models: dict[str, Any], path: pathlib.Path) -> None:
  """Draws perplexity and throughput over length."""
  pyplot = metrics.make_pyplot()
  figure, plots = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
  for name, found in models.items():
    trained = {n: _results.finite(x["perplexity"]) for n, x in found.items()}
    trained = {int(n): seeds for n, seeds in trained.items() if seeds}
    plots[0].errorbar(
        list(trained),
        [np.mean(seeds) for seeds in trained.values()],
        [np.std(seeds) for seeds in trained.values()],
        marker="o",
        capsize=3,
        label=name,
    )
    plots[1].plot(
        [int(n) for n in found],
        [x["tokens_per_second"] for x in found.values()],
        marker="o",
    )
  for axes, unit in zip(plots, ("held-out perplexity", "training tokens/s")):
    _results.label_lengths(axes, unit)
  plots[0].legend(fontsize="small")
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _tables(models: dict[str, Any]) -> list[_results.Table]:
  """Returns perplexity and throughput, and the paper's."""
  heads_of_paper = ["", *(f"{n:,}" for n in _paper.DEPTH_LENGTHS)]
  return [
      _results.by_length(
          "Held-out perplexity by tokens of a sequence, mean and deviation over"
          " seeds:",
          models,
          lambda x: _results.over_seeds(x["perplexity"]),
      ),
      _results.by_length(
          "Training tokens/s, and their ratio to the first row's in the same"
          " round:",
          models,
          lambda x: f"{x['tokens_per_second']:,.0f} ({x['ratio']:.2f})",
      ),
      _results.Table(
          "The paper's Figure 7, perplexity (read from the plot):",
          heads_of_paper,
          [
              [f"{size}, {_name(depth)}", *map(str, row)]
              for size, rows in _paper.DEPTH_PERPLEXITY.items()
              for depth, row in rows.items()
          ],
      ),
      _results.Table(
          "The paper's Figure 8, thousand training tokens/s (read from the plot):",
          heads_of_paper,
          [
              [_name(depth), *map(str, row)]
              for depth, row in _paper.DEPTH_THROUGHPUT.items()
          ],
      ),
  ]


if __name__ == "__main__":
  app.run(main)
