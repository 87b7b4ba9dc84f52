# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Training throughput over sequence length (the paper's Figure 9).

    python -m experiments.efficiency --workdir=runs/efficiency

Times whole training steps of every model at every length, with the same tokens
in a step, in turns: a round times each once, and what is compared is the median
over rounds of the ratio to Transformer++ with full attention in the same round.
Writes results.json (tokens/s, ratios, bytes that a step needs by the compiler's
account) and efficiency.png. "windowed" is attention alone over model.window,
"linear" a linear memory without momentum.
"""

from __future__ import annotations

import pathlib

from absl import app
from absl import flags

from pallas_kernels import command_line
from titans_jax.training import config as config_lib
from titans_jax.training import metrics
from titans_jax.training import overlay

from . import _flags
from . import _paper
from . import _results
from . import _text
from . import _timing
from . import _variants

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the results.", required=True
)
_MODELS = flags.DEFINE_list(
    "models",
    "transformer,windowed,lmm,mac,mag,mal,linear",
    f"Of {', '.join(_variants.NAMES)}.",
)
_LENGTHS = flags.DEFINE_list(
    "lengths", "512,1024,2048,4096,8192,16384", "Tokens of a sequence."
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Times that every step is timed.", lower_bound=1
)
_BASELINE = flags.DEFINE_enum(
    "baseline",
    "transformer",
    list(_variants.NAMES),
    "The model that ratios are to: windowed, where full attention does not fit.",
)
_SMOKE = flags.DEFINE_bool(
    "smoke", False, "Times two short lengths in one round."
)
_CONFIG = _flags.define_config("efficiency.py")


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors():
    command_line.check_names("models", _MODELS.value, _variants.NAMES)
    lengths = command_line.positive_integers("lengths", _LENGTHS.value)
    rounds = _ROUNDS.value
    if _SMOKE.value:
      lengths, rounds = lengths[:2], 1
    _flags.refuse_overrides(
        "here",
        "model.variant",
        "train.",
        "optimizer.",
        "parallel.",
        "data.source",
    )
    values = _CONFIG.value.copy_and_resolve_references()
    sequences = _text.cut(values, lengths)
    names = list(dict.fromkeys([*_MODELS.value, _BASELINE.value]))
    runs = {
        length: {name: _run(values, name, length, count) for name in names}
        for length, count in sequences.items()
    }
    results = _results.Results(
        _WORKDIR.value,
        "efficiency",
        {
            **_results.config_settings(values, "model.variant"),
            "models": names,
            "rounds": rounds,
            "baseline": _BASELINE.value,
            "device": command_line.describe(command_line.device()),
        },
        _tables,
        {"tokens_per_second": _paper.EFFICIENCY},
    )
    for length in lengths:
      if all(str(length) in results.models.get(name, {}) for name in names):
        continue
      for name, found in _timing.time_steps(
          runs[length], rounds, _BASELINE.value
      ).items():
        results.models.setdefault(name, {})[str(length)] = found
      results.write()
      _plot(results.models, results.workdir / "efficiency.png")
  results.print_tables()


def _run(values, name: str, length: int, count: int) -> config_lib.RunConfig:
  values = values.copy_and_resolve_references()
  _variants.choose(values.model, name, length)
  values.data.sequence_length = length
  values.data.batch_size = count
  return overlay.run_config(values, 256)


def _plot(models: dict, path: pathlib.Path) -> None:
  """Draws tokens/s and memory over length."""
  pyplot = metrics.make_pyplot()
  figure, plots = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
  for axes, key, unit, scale in (
      (plots[0], "tokens_per_second", "tokens/s", 1),
      (plots[1], "bytes", "MiB that a step needs (compiler)", 2**20),
  ):
    for name, found in models.items():
      axes.plot(
          [int(n) for n in found],
          [x[key] / scale for x in found.values()],
          marker="o",
          label=name,
      )
    axes.set_yscale("log")
    _results.label_lengths(axes, unit)
  plots[0].legend(fontsize="small")
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _tables(models: dict) -> list[_results.Table]:
  """Returns throughput, ratios and memory, and the paper's throughput."""
  paper = _results.Table(
      "The paper's Figure 9 (thousand tokens/s; hardware and sizes unknown):",
      ["", *(f"{n:,}" for n in _paper.EFFICIENCY_LENGTHS)],
      [[name, *map(str, row)] for name, row in _paper.EFFICIENCY.items()],
  )
  return [
      _results.by_length(
          "Training tokens/s by tokens of a sequence, the same tokens a step:",
          models,
          lambda x: f"{x['tokens_per_second']:,.0f}",
      ),
      _results.by_length(
          f"The same, to that of {_BASELINE.value} in the same round:",
          models,
          lambda x: f"{x['ratio']:.2f}",
      ),
      _results.by_length(
          "MiB that a step needs (compiler):",
          models,
          lambda x: f"{x['bytes'] / 2**20:,.0f}",
      ),
      paper,
  ]


if __name__ == "__main__":
  app.run(main)
