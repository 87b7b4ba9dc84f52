# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Long-term forecasting of time series (the paper's Table 3).

    python -m experiments.forecast --csv=ETTh1.csv --workdir=runs/etth1
    python -m experiments.forecast --csv=mine.csv --workdir=runs/mine \
        --horizons=24 --config.data.look_back=168

Trains the forecaster and the linear baseline for every horizon and seed, and
measures both, and the last value seen, on the test rows. The CSV file has a date
in its first column and a channel in every other. Writes results.json (MSE and
MAE of scaled values for every seed) and, for every horizon, a plot of forecasts.
A run that was stopped goes on.
"""

from __future__ import annotations

import pathlib

from absl import app
from absl import flags
import numpy as np

from pallas_kernels import command_line
from titans_jax.data import series as series_lib
from titans_jax.evaluation import forecasting
from titans_jax.models import forecaster
from titans_jax.training import checkpoints
from titans_jax.training import config as config_lib
from titans_jax.training import metrics
from titans_jax.training import overlay
from titans_jax.training import trainer

from . import _flags
from . import _paper
from . import _results

_CSV = flags.DEFINE_string("csv", None, "File of the series.", required=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder that holds the runs.", required=True
)
_HORIZONS = flags.DEFINE_list(
    "horizons", "96,192,336,720", "Steps to forecast."
)
_SEEDS = flags.DEFINE_integer(
    "seeds", 3, "Runs of each, with other seeds.", lower_bound=1
)
_SMOKE = flags.DEFINE_bool("smoke", False, "Trains a few steps only.")
_CONFIG = _flags.define_config("forecast.py")

_MODELS = ("titans", "dlinear")
_LAST_VALUE = "last value"


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(
      checkpoints.CheckpointError, trainer.NonFiniteLossError
  ):
    horizons = command_line.positive_integers("horizons", _HORIZONS.value)
    _flags.refuse_overrides(
        "here: --horizons and data.epochs say it",
        "data.horizon",
        "train.num_steps",
        "train.eval_every",
    )
    _flags.refuse_overrides(
        "for a forecaster", "train.z_loss", "train.memory_cost"
    )
    values = _CONFIG.value.copy_and_resolve_references()
    series = series_lib.read(_CSV.value)
    for horizon in horizons:  # All must fit before the first is trained.
      run = _run(values, series, "titans", horizon, 0)
      _task(_model("titans", run, series), series, run)
    results = _results.Results(
        _WORKDIR.value,
        "forecast",
        {
            **_results.config_settings(values, "data.horizon"),
            "dlinear_learning_rate": _DLINEAR_LEARNING_RATE,
            "series": series.fingerprint,
            "smoke": _SMOKE.value,
        },
        _tables,
        {"mse_mae": _paper.FORECASTS},
    )
    for horizon in horizons:
      if not _measure(values, series, horizon, results):
        return  # stopped by SIGTERM
  results.print_tables()


def _run(
    values, series: series_lib.Series, name: str, horizon: int, seed: int
) -> config_lib.RunConfig:
  """Returns the run of a model, horizon and seed."""
  values = values.copy_and_resolve_references()
  values.data.horizon = horizon
  values.seed += seed
  data = forecasting.ForecastData(**values.data.to_dict())
  windows = len(series.starts("train", data.look_back, horizon))
  steps = windows // data.batch_size
  values.train.num_steps = max(data.epochs * steps, 1)
  values.train.eval_every = max(steps, 1)
  if name == "dlinear":  # as its authors train it
    values.optimizer.learning_rate = _DLINEAR_LEARNING_RATE
    values.data.dropout = 0.0
  if _SMOKE.value:
    _flags.shorten(values)
  return overlay.run_config(values, 1, forecasting.ForecastData)


# Of its authors, for the ETT data sets.
_DLINEAR_LEARNING_RATE = 0.005


def _model(name: str, run: config_lib.RunConfig, series: series_lib.Series):
  sizes = {
      "look_back": run.data.look_back,
      "horizon": run.data.horizon,
      "channels": len(series.channels),
  }
  if name == "dlinear":
    return forecaster.DLinear(**sizes)
  return forecaster.Forecaster(
      config=run.model,
      period=series.period,
      patch_length=run.data.patch_length,
      **sizes,
  )


def _task(model, series, run) -> forecasting.ForecastTask:
  return forecasting.ForecastTask(model, series, run.data, seed=run.seed)


def _measure(values, series, horizon: int, results: _results.Results) -> bool:
  """Trains and measures what is not done yet; returns False if stopped."""
  for name in _MODELS:
    found = results.models.setdefault(name, {}).setdefault(str(horizon), {})
    for seed in range(_SEEDS.value):
      if str(seed) in found:
        continue
      run = _run(values, series, name, horizon, seed)
      model = _model(name, run, series)
      task = _task(model, series, run)
      print(f"\n{name}, horizon {horizon}, seed {seed}:", flush=True)
      workdir = results.workdir / f"{name}_{horizon}_{seed}"
      trained = trainer.train(run, workdir, model, task)
      if not trained.finished:
        return False
      if name == "titans":
        _plot(model, trained.params, task, series, results.workdir)
      found[str(seed)] = task.measure(trained.params, "test")
      errors = (f"{k} {v:.4f}" for k, v in found[str(seed)].items())
      print(f"test: {', '.join(errors)}", flush=True)
      results.write()
  found = results.models.setdefault(_LAST_VALUE, {})
  if str(horizon) not in found:
    run = _run(values, series, "titans", horizon, 0)
    task = _task(_model("titans", run, series), series, run)
    found[str(horizon)] = {"0": task.measure_last_value("test")}
    results.write()
  return True


def _plot(model, params, task, series, workdir: pathlib.Path) -> None:
  """Draws forecasts beside the truth: three places of the test rows."""
  places = np.linspace(0, task.num_windows("test") - 1, 3).astype(int)
  batch = task.windows("test", places)
  forecast = model.apply({"params": params}, batch["history"], batch["phase"])
  pyplot = metrics.make_pyplot()
  shown = min(3, len(series.channels))
  figure, plots = pyplot.subplots(
      shown,
      len(places),
      figsize=(4 * len(places), 2.2 * shown),
      squeeze=False,
      layout="constrained",
  )
  length, horizon = batch["history"].shape[1], batch["future"].shape[1]
  future = np.arange(length, length + horizon)
  for channel, row in enumerate(plots):
    for i, axes in enumerate(row):
      axes.plot(batch["history"][i, :, channel], color="gray", label="seen")
      axes.plot(
          future, batch["future"][i, :, channel], color="black", label="truth"
      )
      axes.plot(future, forecast[i, :, channel], color="C0", label="forecast")
      axes.set_title(
          f"{series.channels[-1 - channel]}, test window {places[i]:,}",
          fontsize="small",
      )
  plots[0, 0].legend(fontsize="small")
  figure.savefig(workdir / f"forecast_{horizon}.png", dpi=110)
  pyplot.close(figure)


def _tables(models: dict) -> list[_results.Table]:
  """Returns errors by horizon, their averages, and the paper's."""
  horizons = sorted({int(h) for found in models.values() for h in found})
  rows = []
  for model, found in models.items():
    cells, means, deviations = [], [], []
    for horizon in horizons:
      seeds = found.get(str(horizon), {}).values()
      if not seeds:
        cells.append("")
        continue
      means.append([np.mean([s[k] for s in seeds]) for k in ("mse", "mae")])
      deviations.append(np.std([s["mse"] for s in seeds]))
      cells.append(f"{means[-1][0]:.4f}/{means[-1][1]:.4f}")
    average = ""
    if len(means) == len(horizons):
      average = "{:.4f}/{:.4f}".format(*np.mean(means, axis=0))
    if means:
      rows.append([model, *cells, average, f"{np.mean(deviations):.4f}"])
  ours = _results.Table(
      "MSE/MAE of scaled values on the test rows by horizon, mean over seeds; the"
      " MSE's deviation over seeds:",
      ["", *map(str, horizons), "average", "deviation"],
      rows,
  )
  name = pathlib.Path(_CSV.value).stem
  if name not in _paper.FORECASTS:
    return [ours]
  paper = _results.Table(
      f"The paper's Table 3, {name}, average of the horizons 96 to 720:",
      ["", "MSE", "MAE"],
      [
          [model, f"{mse:.3f}", f"{mae:.3f}"]
          for model, (mse, mae) in _paper.FORECASTS[name].items()
      ],
  )
  return [ours, paper]


if __name__ == "__main__":
  app.run(main)
