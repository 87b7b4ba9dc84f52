# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The training loop."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Iterator, NamedTuple

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from titans_jax import files
from titans_jax import parallel
from titans_jax.models import language_model
from titans_jax.parallel import chips
from titans_jax.parallel import distributed
from titans_jax.training import checkpoints as checkpoints_lib
from titans_jax.training import config as config_lib
from titans_jax.training import metrics as metrics_lib
from titans_jax.training import optimizer as optimizer_lib
from titans_jax.training import step as step_lib
from titans_jax.training import tasks

_PROFILED_STEPS = 3


class Result(NamedTuple):
  """What a run leaves behind.

  Attributes:
    params: the model's parameters.
    evaluation: the last evaluation; None where a signal stopped the run before
      there was one.
    finished: False if a signal stopped the run.
  """

  params: Any
  evaluation: dict[str, float] | None
  finished: bool


class NonFiniteLossError(RuntimeError):
  """The loss, gradient or parameters became infinite or not a number."""


def train(
    run: config_lib.RunConfig,
    workdir: str | os.PathLike[str],
    model: step_lib.Model,
    task: tasks.Task,
    init_from: str | os.PathLike[str] | None = None,
) -> Result:
  """Trains, or goes on where the workdir's last checkpoint stopped.

  Writes `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/` and
  `learning_curve.png` into the workdir. A run that was stopped, by whatever
  means, and started again is bit for bit the run that was never stopped.

  Args:
    run: what to train.
    workdir: where, local or `gs://`; must hold nothing, or this run.
    model: of the run.
    task: what to train it on.
    init_from: another run, whose parameters a fresh run begins with, in this
      run's layout and dtype.

  Raises:
    ValueError: the workdir holds another run, or the data is not the one that
      the run was started on.
    checkpoints.CheckpointError: a checkpoint cannot be written or read.
    NonFiniteLossError: the loss became infinite or not a number.
    distributed.ProcessesError: another process of the run is gone.
  """
  folder = epath.Path(workdir)
  init_from = files.absolute(init_from)
  check_same_run(run, folder, init_from)
  mesh = parallel.make_mesh(run.parallel)
  parallel.check(
      mesh,
      run.model,
      batch_size=run.data.batch_size,
      accumulation=run.train.accumulation,
  )
  distributed.check_same(
      {
          "configuration": run.to_dict(),
          "data": task.fingerprint,
          "init_from": init_from,
      }
  )
  optimizer = optimizer_lib.make_optimizer(run.optimizer, run.train.num_steps)
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(_sigterm())
    stack.enter_context(jax.set_mesh(mesh))
    like = step_lib.abstract_state(
        model, optimizer, mesh, run.parallel, run.carried_rows
    )
    params = None
    if init_from is not None and not checkpoints_lib.exist(folder):
      # Before anything is written: another model's do not fit.
      params = _params_of(init_from, like)
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
      _write_config(run, folder, init_from)
    checkpoints = stack.enter_context(
        contextlib.closing(
            checkpoints_lib.Checkpoints(
                folder / "checkpoints",
                keep=run.train.keep_checkpoints,
                keep_every=run.train.keep_every,
            )
        )
    )
    distributed.say(parameter_table(like.params))
    distributed.say(_devices_line(mesh, like))
    restored = checkpoints.restore(like, run)
    checkpoints.check_space(like)
    if restored is None:
      state = step_lib.create_state(model, optimizer, run.seed, like)
      if params is not None:
        state = state._replace(params=params)
    else:
      _check_same_data(restored.data, task)
      state = restored.state
      distributed.say(f"Resuming from step {int(state.step)}.")
    loop = _Loop(run, folder, model, optimizer, task, checkpoints, state, like)
    try:
      return loop.run_until_done(stop)
    except jax.errors.JaxRuntimeError as error:
      if jax.process_count() == 1:
        raise
      raise distributed.ProcessesError(
          "A computation over all processes failed: most likely another process"
          f" is gone ({str(error).splitlines()[0][:200]});"
          f" {checkpoints.last_good()}. The same command goes on from there,"
          " with any number of processes."
      ) from error
    finally:
      loop.close()


class _Loop:
  """The state of one run, between its steps."""

  def __init__(
      self, run, workdir, model, optimizer, task, checkpoints, state, like
  ):
    self.run = run
    self.folder = files.Mirror(workdir, "metrics.jsonl", metrics_lib.WANDB_RUN)
    self.task = task
    self.checkpoints = checkpoints
    self.state = state
    self.first_step = int(state.step)
    self.writer = metrics_lib.make_writer(
        self.folder.path,
        resume_step=self.first_step,
        wandb=self._wandb(),
    )
    self.schedule = optimizer_lib.learning_rate(
        run.optimizer, run.train.num_steps
    )
    self.batches = task.batches(self.first_step)
    self.train_step = step_lib.jit_train_step(
        model,
        optimizer,
        accumulation=run.train.accumulation,
        z_loss=run.train.z_loss,
        memory_cost=run.train.memory_cost,
        like=like,
    )
    self.flops = None
    if isinstance(model, language_model.TitansLM):
      self.flops = _share_of_peak(run, like)
    self.profiling = False
    self.evaluation = None
    self.progress = _Progress(self.first_step, run.train.num_steps)
    # The step dispatched last, not waited for yet: its number and metrics.
    self.pending: tuple[int, Any] | None = None

  def _wandb(self) -> dict[str, Any] | None:
    """Returns the arguments of `wandb.init`; None: nothing goes there."""
    project = self.run.train.wandb_project
    if project is None:
      return None
    workdir = self.folder.workdir
    is_local = not files.is_remote(workdir)
    return {
        "project": project,
        "name": workdir.absolute().name if is_local else workdir.name,
        # Files of its own, which a bucket has no use for.
        "dir": str(workdir) if is_local else tempfile.gettempdir(),
        "config": self.run.to_dict(),
    }

  def run_until_done(self, stop: Callable[[int], bool]) -> Result:
    run, last = self.run, self.run.train.num_steps
    step = self.first_step
    compiled = None
    # Always in this order: evaluate, save, read a batch, step. What a resumed
    # run finds is then exactly what the stopped one left.
    while True:
      done = step == last
      stopping = stop(step) or done  # asked once: a signal may come later
      fresh = step > self.first_step
      if fresh and (done or step % run.train.eval_every == 0):
        self._finish_step()
        self._evaluate(step)
      if fresh and (stopping or step % run.train.checkpoint_every == 0):
        # A step's loss is looked at before its parameters are kept.
        self._finish_step()
        self._save()
      if stopping:
        break
      batch = parallel.place(next(self.batches), run.data.batch_size)
      if compiled is None:
        compiled = self._compile(batch)
      self._profile(step)
      self.state, metrics = compiled(self.state, batch)
      self._finish_step()
      step += 1
      self.pending = (step, metrics)
    self._end_profile()
    self.checkpoints.wait()
    if done:
      if self.evaluation is None:  # resumed behind the last step
        self.evaluation = self.task.evaluate(self.state.params)
      if distributed.is_main():
        metrics_lib.plot_learning_curve(self.folder.path)
    else:
      distributed.say(
          f"Stopped by SIGTERM at step {step}; {self.checkpoints.last_good()}."
          " The same command goes on from there."
      )
    return Result(self.state.params, self.evaluation, done)

  def close(self) -> None:
    """Ends the files; what was written is kept, however the run ended."""
    self.writer.close()
    self.progress.close()
    self._push()

  def _push(self) -> None:
    if distributed.is_main():
      self.writer.flush()
      self.folder.push()

  def _compile(self, batch):
    start = time.perf_counter()
    compiled = self.train_step.lower(self.state, batch).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    distributed.say(
        f"Compiled the training step in {seconds:.1f} s; it needs"
        f" {memory.temp_size_in_bytes / 2**20:,.0f} MiB beside"
        f" {memory.argument_size_in_bytes / 2**20:,.0f} MiB of state."
    )
    self.progress.start()
    return compiled

  def _profile(self, step: int) -> None:
    """Starts or ends the profile in front of step + 1."""
    first = self.run.train.profile_at
    if first is None or not distributed.is_main():
      return
    if step + 1 == first:
      jax.profiler.start_trace(str(self.folder.path / "profile"))
      self.profiling = True
    elif step + 1 >= first + _PROFILED_STEPS:
      self._end_profile()

  def _end_profile(self) -> None:
    if self.profiling:
      self._finish_step()  # All that was dispatched is in it.
      jax.profiler.stop_trace()
      self.profiling = False
      self._push()
      distributed.say(f"Profile: {self.folder.workdir / 'profile'}")

  def _finish_step(self) -> None:
    """Looks at the metrics of the step before the one just dispatched."""
    if self.pending is None:
      return
    (step, metrics), self.pending = self.pending, None
    row = metrics_lib.flatten(jax.device_get(metrics))
    tokens = int(row.pop("num_tokens"))
    # The loss is that of the parameters before the step, their norm behind it.
    watched = ["loss", "grad_norm", "param_norm"]
    if self.run.carried_rows:  # the next step goes on with the memory
      watched += [name for name in row if "_norm/layer_" in name]
    for name in watched:
      if not math.isfinite(row[name]):
        self._stop_non_finite(name, step, row)
    row["learning_rate"] = float(self.schedule(step - 1))
    rate = self.progress.update(step, tokens, row["loss"])
    if step % self.run.train.log_every == 0 or step == 1:
      row["tokens_per_second"] = rate
      if self.flops is not None:
        row["mfu"] = self.flops * rate / tokens
      self.writer.write(step, row)

  def _stop_non_finite(
      self, name: str, step: int, row: dict[str, float]
  ) -> None:
    self.writer.write(step, row)
    gauges = ", ".join(
        f"{name.removeprefix('memory/')}={value:.4g}"
        for name, value in row.items()
        if name.startswith("memory/")
    )
    self.checkpoints.wait()
    raise NonFiniteLossError(
        f"The {name} is {row[name]} at step {step} (loss {row['loss']:.4g},"
        f" gradient norm {row['grad_norm']:.4g}; memory: {gauges or 'none'});"
        f" {self.checkpoints.last_good()}. A lower optimizer.learning_rate, or"
        " model.max_grad_norm=1, may help, in another --workdir."
    )

  def _evaluate(self, step: int) -> None:
    self.evaluation = self.task.evaluate(self.state.params)
    self.writer.write(step, self.evaluation)
    values = (f"{k} {v:.4f}" for k, v in self.evaluation.items())
    self.progress.write(f"step {step}: {', '.join(values)}")

  def _save(self) -> None:
    data = {
        "next_index": int(self.state.step),
        "fingerprint": self.task.fingerprint,
    }
    self.checkpoints.save(self.state, data, self.run.to_dict())
    self._push()


class _Progress:
  """A progress bar on a terminal, a line now and then elsewhere."""

  _SECONDS_BETWEEN_LINES = 15.0

  def __init__(self, first_step: int, num_steps: int):
    self._num_steps = num_steps
    self._first_step = first_step
    self._bar = None
    self.start()

  def start(self) -> None:
    """Starts the clock: compilation does not count."""
    self._start = self._mark = self._said = time.perf_counter()

  def update(self, step: int, tokens: int, loss: float) -> float:
    """Shows a finished step and returns its tokens per second."""
    now = time.perf_counter()
    rate = tokens / max(now - self._mark, 1e-9)
    self._mark = now
    if not distributed.is_main():
      return rate
    if sys.stderr.isatty():
      self._show_bar(step, loss, rate)
    elif now - self._said > self._SECONDS_BETWEEN_LINES:
      self._said = now
      per_step = (now - self._start) / (step - self._first_step)
      left = per_step * (self._num_steps - step)
      print(
          f"step {step}/{self._num_steps}: loss {loss:.4f},"
          f" {rate:,.0f} tokens/s, {left:.0f} s left",
          flush=True,
      )
    return rate

  def _show_bar(self, step: int, loss: float, rate: float) -> None:
    if self._bar is None:
      import tqdm  # pylint: disable=g-import-not-at-top

      self._bar = tqdm.tqdm(
          total=self._num_steps, initial=self._first_step, unit="step"
      )
    self._bar.update(step - self._bar.n)
    self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} tokens/s")

  def write(self, line: str) -> None:
    if self._bar is not None:
      self._bar.write(line)
    else:
      distributed.say(line)
    self._mark = time.perf_counter()

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def _share_of_peak(
    run: config_lib.RunConfig, like: step_lib.TrainState
) -> float | None:
  """Returns a step's operations as a share of what all devices can do at their
  peak in a second; None where the peak is not known."""
  mesh = like.step.sharding.mesh
  chip = chips.find(mesh.devices.flat[0].device_kind)
  if chip is None:
    return None
  parts = step_lib.model_operations(run, like)
  distributed.say(
      f"MFU is {sum(parts.values()):.4g} operations a step (forward and"
      f" backward, each once) by {mesh.size} x {chip.flops:.4g}/s, the peak of"
      f" a {chip.name}."
  )
  return sum(parts.values()) / (chip.flops * mesh.size)


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[int], bool]]:
  """Lets SIGTERM ask for a stop, which comes between two steps.

  Yields:
    Whether to stop in front of step + 1; every process asks in front of every
    step. With several, JAX tells all of a signal that one of them got, and they
    stop at the same step.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  stop = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield lambda _: False  # Signals are the main thread's affair.
    return
  before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
  try:
    yield lambda _: stop.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)


def _params_of(run: str, like: step_lib.TrainState):
  """Returns the parameters of another run, as this one's are."""
  with contextlib.closing(checkpoints_lib.open_checkpoints(run)) as others:
    params, _, step = others.restore_params(like=like.params)
  distributed.say(f"Parameters of step {step} of {run}.")
  return params


def _write_config(
    run: config_lib.RunConfig, folder: epath.Path, init_from: str | None
) -> None:
  values = run.to_dict() | {"init_from": init_from}
  files.replace(folder / "config.json", json.dumps(values, indent=2))


def check_same_run(
    run: config_lib.RunConfig,
    workdir: epath.Path,
    init_from: str | os.PathLike[str] | None = None,
) -> None:
  """Raises ValueError if the workdir holds another run, or one that began with
  other parameters."""
  path = workdir / "config.json"
  if not path.exists():
    if (workdir / "checkpoints").exists():
      raise ValueError(
          f"--workdir={workdir} holds checkpoints but no config.json: it is"
          " not the workdir of a run."
      )
    return
  try:
    saved = json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} is not readable as JSON: {error}.") from error
  init_from = files.absolute(init_from)
  began = saved.pop("init_from", init_from)  # Older runs do not say.
  if began != init_from:
    raise ValueError(
        f"--workdir={workdir} holds a run that began with --init_from={began},"
        f" not {init_from}. Choose another --workdir, or the same to resume."
    )
  differences = list(config_lib.differences(saved, run))
  if differences:
    raise ValueError(
        f"--workdir={workdir} holds another run: {'; '.join(differences)}."
        " Choose another --workdir, or the same configuration to resume."
    )


def _check_same_data(data: dict[str, Any], task: tasks.Task) -> None:
  if data["fingerprint"] != task.fingerprint:
    raise ValueError(
        "The run was started on other data: its text, tokenizer or packing has"
        f" the fingerprint {data['fingerprint']}, what is given now has"
        f" {task.fingerprint}. (The text of 'builtin' is that of the running"
        " Python.) Restore the data, or choose another --workdir."
    )


def _devices_line(mesh: jax.sharding.Mesh, like: step_lib.TrainState) -> str:
  """Says over which devices the state lies, and how much of it on each."""
  of_device = parallel.bytes_on_device(like)
  axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
  return (
      f"{mesh.size} x {mesh.devices.flat[0].device_kind} as {axes}:"
      f" {of_device / 2**20:,.1f} MiB of training state on each."
  )


def parameter_table(params) -> str:
  """Returns a line per parameter, and their total."""
  lines, total = [], 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = "/".join(entry.key for entry in path)
    total += leaf.size
    lines.append((name, str(leaf.shape), f"{leaf.size:,}"))
  lines.append(("total", "", f"{total:,}"))
  widths = np.max([[len(cell) for cell in line] for line in lines], axis=0)
  return "\n".join(
      f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {size:>{widths[2]}}"
      for name, shape, size in lines
  )
