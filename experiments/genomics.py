# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Classification of DNA (the paper's Table 4).

    python -m experiments.genomics --data=human_nontata_promoters \
        --workdir=runs/promoters
    python -m experiments.genomics --workdir=runs/motifs

--data is a folder with `train` and `test` in it, each a folder of classes, as
GenomicBenchmarks has them, or `train.csv` and `test.csv` with the columns
`sequence` and `label`. (Where `pip install genomic-benchmarks` is, its
`download_dataset` makes such a folder.) Without --data the motif task is learned,
whose two sites lie further apart than windows can relay, and measured up to 16
times the training length. Trains --variants, each with --seeds, or the model of
--init_from further (on longer sequences, on other data), and writes results.json. A
run that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import pathlib

from absl import app
from absl import flags
import numpy as np

from pallas_kernels import command_line
from titans_jax import files
from titans_jax.data import genomes
from titans_jax.evaluation import genomics
from titans_jax.evaluation import recall
from titans_jax.models import classifier
from titans_jax.models import config as model_config
from titans_jax.training import checkpoints
from titans_jax.training import config as config_lib
from titans_jax.training import overlay
from titans_jax.training import trainer

from . import _checkpoint
from . import _flags
from . import _paper
from . import _results

_DATA = flags.DEFINE_string(
    "data", None, "Folder with train and test; without it, the motif task."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder that holds the runs.", required=True
)
_VARIANTS = flags.DEFINE_list(
    "variants", "lmm,transformer", "Which to train, with --config's sizes."
)
_INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Workdir of one run of this experiment: its model is trained further, in place"
    " of --variants.",
)
_SEEDS = flags.DEFINE_integer(
    "seeds", 1, "Runs of each, with other seeds.", lower_bound=1
)
_MOTIFS = flags.DEFINE_integer(
    "motifs",
    16_384,
    "Sequences of the motif task, held-out ones included.",
    lower_bound=2,
)
_LENGTHS = flags.DEFINE_list(
    "lengths",
    None,
    "Bases to measure the motif task at; 1 to 16 times the training's.",
)
_SMOKE = flags.DEFINE_bool("smoke", False, "Trains a few steps only.")
_CONFIG = _flags.define_config("genomics.py")

# Of the motif task: sequences to measure with, at lengths that are multiples of
# the training's.
_MOTIFS_TESTED = 512
_MULTIPLES = (1, 2, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class _Sets:
  """Sequences to train on, and to test with by the name of the result.

  Attributes:
    train: sequences.
    tests: sequences, and the bases that a row holds, by name.
  """

  train: genomes.Sequences
  tests: dict[str, tuple[genomes.Sequences, int]]


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(
      checkpoints.CheckpointError, trainer.NonFiniteLossError
  ):
    command_line.check_names("variants", _VARIANTS.value, model_config.VARIANTS)
    if _INIT_FROM.value is None:
      _flags.refuse_overrides("beside --variants", "model.variant")
    else:
      _flags.refuse_overrides("with --init_from: the model is its", "model.")
      _flags.refuse_flag("variants", "with --init_from")
    _flags.refuse_overrides(
        "here: data.epochs says it", "train.num_steps", "train.eval_every"
    )
    _flags.refuse_overrides("for a classifier", "train.z_loss")
    if _DATA.value is not None:
      for name in ("motifs", "lengths"):
        if flags.FLAGS[name].present:
          raise ValueError(f"--{name} is of the motif task: not with --data.")
    values = _CONFIG.value.copy_and_resolve_references()
    variants, init_from = _VARIANTS.value, _INIT_FROM.value
    if init_from is not None:
      before = _checkpoint.adopt_model(values, init_from)
      if "epochs" not in before["data"]:
        raise ValueError(
            f"--init_from={init_from}: its model is no classifier of sequences."
        )
      variants = [values.model.variant]
    length = values.data.sequence_length
    sets = _motifs(length) if _DATA.value is None else _read(length)
    runs = {
        (variant, seed): _run(values, variant, seed, sets)
        for variant in variants
        for seed in range(_SEEDS.value)
    }
    results = _results.Results(
        _WORKDIR.value,
        "genomics",
        {
            **_results.config_settings(values, "model.variant"),
            "init_from": files.absolute(init_from),
            "train": sets.train.fingerprint,
            "tests": [test.fingerprint for test, _ in sets.tests.values()],
            "smoke": _SMOKE.value,
        },
        _tables,
        {"top_1": _paper.GENOMICS},
    )
    for (variant, seed), run in runs.items():
      found = results.models.setdefault(variant, {})
      if str(seed) in found:
        continue
      workdir = results.workdir / f"{variant}_{seed}"
      accuracy = _measure(run, workdir, sets)
      if accuracy is None:
        return  # stopped by SIGTERM
      found[str(seed)] = accuracy
      results.write()
  results.print_tables()


def _read(length: int) -> _Sets:
  """Returns the sequences of --data."""
  folder = pathlib.Path(_DATA.value)
  found = []
  for name in ("train", "test"):
    path = folder / name
    if not path.exists():
      path = folder / f"{name}.csv"
    found.append(genomes.read(path, f"--data={folder}"))
  train, test = found
  if train.classes != test.classes:
    raise ValueError(
        f"--data={folder}: train has the classes {list(train.classes)}, test has"
        f" {list(test.classes)}."
    )
  cut = np.mean([len(t) > length for t in train.tokens])
  print(
      f"{len(train.labels):,} sequences to train on, {len(test.labels):,} to test"
      f" with; {cut:.1%} are longer than data.sequence_length={length} and are"
      " cut."
  )
  return _Sets(train, {"test": (test, length)})


def _motifs(length: int) -> _Sets:
  """Returns sequences of the motif task."""
  if length < genomics.LEAST:
    raise ValueError(
        f"--config.data.sequence_length={length} does not hold the two sites: at"
        f" least {genomics.LEAST} bases are needed."
    )
  least = max(length // 4, genomics.LEAST)
  train = genomics.make_motifs(
      _MOTIFS.value, least, length, np.random.default_rng(0)
  )
  if _LENGTHS.value is None:
    multiples = _MULTIPLES[:2] if _SMOKE.value else _MULTIPLES
    lengths = [multiple * length for multiple in multiples]
  else:
    lengths = command_line.positive_integers("lengths", _LENGTHS.value)
  tests = {}
  for longer in lengths:
    rng = np.random.default_rng((1, longer))
    test = genomics.make_motifs(_MOTIFS_TESTED, longer, longer, rng)
    tests[str(longer)] = test, longer
  return _Sets(train, tests)


def _run(values, variant: str, seed: int, sets: _Sets) -> config_lib.RunConfig:
  values = values.copy_and_resolve_references()
  values.model.variant = variant
  values.seed += seed
  data = genomics.GenomicsData(**values.data.to_dict())
  steps = data.steps_per_epoch(len(sets.train.labels))
  values.train.num_steps = data.epochs * steps
  values.train.eval_every = steps
  if _SMOKE.value:
    _flags.shorten(values)
  run = overlay.run_config(values, genomes.VOCAB_SIZE, genomics.GenomicsData)
  apart = genomics.least_distance(data.sequence_length)
  relayed = recall.reach(run.model)
  if _DATA.value is None and run.model.window and apart <= relayed:
    raise ValueError(
        f"--config.data.sequence_length={data.sequence_length} leaves sites"
        f" {apart} bases apart, which attention and convolutions of {variant} can"
        f" relay ({relayed}): choose longer sequences, or a model with a smaller"
        " window."
    )
  return run


def _measure(
    run: config_lib.RunConfig, workdir: pathlib.Path, sets: _Sets
) -> dict[str, float] | None:
  """Trains a model; returns its accuracy by test, None if stopped."""
  print(f"\n{workdir.name}:", flush=True)
  if _DATA.value is None:
    relayed = recall.reach(run.model)
    print(f"Attention and convolutions can relay {relayed} bases.")
  model = classifier.Classifier(run.model, len(sets.train.classes))
  task = genomics.GenomicsTask(model, sets.train, run.data, seed=run.seed)
  trained = trainer.train(run, workdir, model, task, _INIT_FROM.value)
  if not trained.finished:
    return None
  return {
      test: task.measure(trained.params, sequences, length)["accuracy"]
      for test, (sequences, length) in sets.tests.items()
  }


def _tables(models: dict) -> list[_results.Table]:
  """Returns accuracies by model, and the paper's."""
  tests = list(next(iter(next(iter(models.values())).values())))
  heads = tests
  if _DATA.value is None:
    heads = [
        f"{int(n):,} ({genomics.least_distance(int(n)):,} apart)" for n in tests
    ]
  rows = []
  for variant, found in models.items():
    accuracy = np.array([list(seed.values()) for seed in found.values()])
    cells = (
        f"{m:.3f} +- {d:.3f}" for m, d in zip(accuracy.mean(0), accuracy.std(0))
    )
    rows.append([variant, *cells])
  title = "Accuracy (top-1), mean and deviation over seeds:"
  ours = _results.Table(title, ["", *heads], rows)
  name = pathlib.Path(_DATA.value).name if _DATA.value else None
  if name not in _paper.GENOMICS:
    return [ours]
  paper = _results.Table(
      f"The paper's Table 4, {name} (percent):",
      ["", "top-1"],
      [[model, str(value)] for model, value in _paper.GENOMICS[name].items()],
  )
  return [ours, paper]


if __name__ == "__main__":
  app.run(main)
