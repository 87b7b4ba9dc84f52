# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: asynchronous, checked, and never half a one."""

from __future__ import annotations

import os
import shutil
from typing import Any, NamedTuple

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from titans_jax import files
from titans_jax.models import checksums
from titans_jax.parallel import distributed
from titans_jax.training import config as config_lib
from titans_jax.training import step as step_lib


class CheckpointError(RuntimeError):
  """A checkpoint could not be written or read."""


class _AnotherModelError(ValueError):
  """Parameters are those of a model of other shapes."""


class Restored(NamedTuple):
  """What a checkpoint holds.

  Attributes:
    state: parameters, optimizer state and step.
    data: state of the data, as it was saved.
  """

  state: step_lib.TrainState
  data: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run, in `directory`.

  Only the run itself opens them to write; whoever reads leaves a save that is
  under way alone. Of several processes all call the same methods, and each
  writes what its devices hold.
  """

  def __init__(
      self,
      directory: str | os.PathLike[str],
      *,
      keep: int | None = None,
      keep_every: int | None = None,
  ):
    """Opens a folder, local or `gs://`.

    Args:
      directory: where they are.
      keep: how many of the newest stay; None: opens them to read only.
      keep_every: those of this step's multiples stay for good.
    """
    self.directory = epath.Path(directory)
    self._is_local = not files.is_remote(directory)
    if self._is_local:
      self.directory = self.directory.absolute()
    if keep is None:
      options = ocp.CheckpointManagerOptions(read_only=True)
    else:
      options = ocp.CheckpointManagerOptions(
          max_to_keep=keep,
          keep_period=keep_every,
          cleanup_tmp_directories=True,
      )
    self._manager = ocp.CheckpointManager(self.directory, options=options)
    self._last_good: int | None = None

  def last_good(self) -> str:
    """Names the newest checkpoint that is known to be whole."""
    if self._last_good is None:
      return "no checkpoint was saved yet"
    return (
        f"the last good checkpoint is {self.directory / str(self._last_good)}"
    )

  def check_space(self, state: step_lib.TrainState) -> None:
    """Raises CheckpointError if the disk cannot hold one more checkpoint."""
    if not self._is_local:
      return
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self.directory).free
    if free < needed:
      raise CheckpointError(
          f"A checkpoint takes up to {needed:,} bytes, but {self.directory} has"
          f" {free:,} free; {self.last_good()}. Free some space, or choose"
          " another --workdir."
      )

  def save(
      self,
      state: step_lib.TrainState,
      data: dict[str, Any],
      run: dict[str, Any],
  ) -> None:
    """Saves in the background; an error of the save before is raised here."""
    step = int(state.step)
    self.wait()
    self.check_space(state)
    meta = {
        "format_version": config_lib.FORMAT_VERSION,
        "run": run,
        "data": data,
        "checksums": _checksums(state),
    }
    try:
      saving = self._manager.save(
          step,
          args=ocp.args.Composite(
              params=ocp.args.StandardSave(state.params),
              optimizer=ocp.args.StandardSave(_optimizer_item(state)),
              meta=ocp.args.JsonSave(meta),
          ),
      )
    except Exception as error:
      raise self._failed(step, error) from error
    if not saving:
      raise CheckpointError(
          f"Step {step} is not behind the newest checkpoint in"
          f" {self.directory}, and was not saved."
      )
    self._saving = step

  _saving: int | None = None

  def wait(self) -> None:
    """Waits until the save in the background is done."""
    if self._saving is None:
      return
    step, self._saving = self._saving, None
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      raise self._failed(step, error) from error
    self._last_good = step

  def _failed(self, step: int, error: Exception) -> CheckpointError:
    where = str(self.directory)
    if self._is_local:
      free = shutil.disk_usage(self.directory).free
      where = f"{free:,} bytes are free in {where}"
    return CheckpointError(
        f"Saving the checkpoint of step {step} failed ({where}):"
        f" {_first_line(error)}; {self.last_good()}."
    )

  def restore(
      self, like: step_lib.TrainState, run: config_lib.RunConfig
  ) -> Restored | None:
    """Returns the newest whole checkpoint, or None where there is none.

    Damaged ones behind it are put aside as `STEP.damaged`: the run that goes on
    will save these steps anew.

    Args:
      like: a state of the same shapes and shardings, abstract or not.
      run: what is to go on.

    Raises:
      CheckpointError: there are checkpoints, but none is whole, or they are
        those of another run.
    """
    steps = self._steps()
    for step in steps:
      meta = self._meta_or_none(step)
      if meta is None:
        continue
      others = list(config_lib.differences(meta["run"], run))
      if others:
        raise CheckpointError(
            f"{self.directory} holds checkpoints of another run:"
            f" {'; '.join(others)}."
        )
      try:
        restored = self._restore(step, like, meta)
      except Exception as error:  # pylint: disable=broad-except
        self._damaged(step, error)
        continue
      self._last_good = step
      self._put_aside([other for other in steps if other > step])
      return restored
    if steps:
      raise self._none_can_be_read(steps)
    return None

  def _restore(self, step, like, meta) -> Restored:
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = self._manager.restore(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardRestore(like.params),
            optimizer=ocp.args.StandardRestore(_optimizer_item(like)),
        ),
    )
    saved = items["optimizer"]
    state = step_lib.TrainState(
        step=saved["step"],
        params=items["params"],
        opt_state=saved["opt_state"],
        model_state=_with_empty(saved.get("model_state", []), like.model_state),
    )
    _check_sums(_checksums(state), meta["checksums"])
    return Restored(state, meta["data"])

  def run(self) -> dict[str, Any]:
    """Returns the configuration of the run that saved the newest checkpoint.

    Raises:
      CheckpointError: none can be read.
    """
    steps = self._steps()
    for step in steps:
      if (meta := self._meta_or_none(step)) is not None:
        config_lib.check_version(meta["run"])
        return meta["run"]
    raise self._none_can_be_read(steps)

  def restore_params(
      self, step: int | None = None, like: Any = None
  ) -> tuple[Any, dict[str, Any], int]:
    """Returns the parameters alone, their run's configuration, and their step.

    Args:
      step: which checkpoint; None: the newest whole one.
      like: parameters, abstract or not, whose shardings and dtypes these get;
        None: they keep their dtypes, on this process's first device.

    Raises:
      CheckpointError: none can be read.
      ValueError: `like` is of a model of other shapes.
    """
    steps = self._steps()
    if step is not None:
      if step not in steps:
        raise CheckpointError(
            f"{self.directory} holds no checkpoint of step {step}, but those of"
            f" {sorted(steps)}."
        )
      steps = [step]
    for candidate in steps:
      meta = self._meta_or_none(candidate)
      if meta is None:
        continue
      config_lib.check_version(meta["run"])
      try:
        params = self._restore_params(candidate, meta, like)
        return params, meta["run"], candidate
      except _AnotherModelError:
        raise
      except Exception as error:  # pylint: disable=broad-except
        self._damaged(candidate, error)
    raise self._none_can_be_read(steps)

  def _restore_params(self, step: int, meta: dict[str, Any], like: Any) -> Any:
    # What was saved says its shapes and dtypes, whatever its model is.
    folder = self.directory / str(step) / "params"
    saved = ocp.StandardCheckpointHandler().metadata(folder).tree
    if like is None:
      device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      shardings = jax.tree.map(lambda _: device, saved)
    else:
      _check_same_shapes(saved, like, self.directory)
      shardings = jax.tree.map(lambda x: x.sharding, like)
    saved = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding
        ),
        saved,
        shardings,
    )
    items = self._manager.restore(
        step, args=ocp.args.Composite(params=ocp.args.StandardRestore(saved))
    )
    params = items["params"]
    _check_sums(_checksums({"params": params}), meta["checksums"])
    if like is not None:
      params = jax.tree.map(lambda x, y: x.astype(y.dtype), params, like)
    return params

  def close(self) -> None:
    self._manager.close()

  def _steps(self) -> list[int]:
    return sorted(self._manager.all_steps(), reverse=True)

  def _meta_or_none(self, step: int) -> dict[str, Any] | None:
    """Returns what stands beside the arrays; None, and says so, if damaged."""
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    try:
      meta = self._manager.restore(step, args=args)["meta"]
      if {"run", "data", "checksums"} <= set(meta):
        return meta
      raise CheckpointError(f"its description holds only {sorted(meta)}")
    except Exception as error:  # pylint: disable=broad-except
      self._damaged(step, error)
      return None

  def _none_can_be_read(self, steps: list[int]) -> CheckpointError:
    return CheckpointError(
        f"None of the checkpoints {steps} in {self.directory} can be read."
    )

  def _put_aside(self, steps: list[int]) -> None:
    if not steps:
      return
    if distributed.is_main():
      for step in steps:
        aside = self.directory / f"{step}.damaged"
        if aside.exists():
          aside.rmtree()
        (self.directory / str(step)).rename(aside)
    distributed.barrier("damaged checkpoints are put aside")
    self._manager.reload()

  def _damaged(self, step: int, error: Exception) -> None:
    if jax.process_count() > 1:
      # Alone this process cannot pass over it: the others may have read it.
      raise CheckpointError(
          f"Checkpoint {self.directory / str(step)} is damaged, or process"
          f" {jax.process_index()} cannot read it: {_first_line(error)}. If it"
          " is damaged, remove it: the run goes on from the one before."
      ) from error
    logging.warning(
        "Checkpoint %s is damaged and is passed over: %s",
        self.directory / str(step),
        _first_line(error),
    )


def open_checkpoints(path: str | os.PathLike[str]) -> Checkpoints:
  """Opens the checkpoints of a workdir, or of its `checkpoints` folder.

  Raises:
    CheckpointError: the path holds none.
  """
  root = epath.Path(path)
  for directory in (root / "checkpoints", root):
    if _holds_any(directory):
      return Checkpoints(directory)
  raise CheckpointError(
      f"{path} holds no checkpoint. Give the folder of one run, in which"
      " `checkpoints` is."
  )


def exist(workdir: epath.Path) -> bool:
  """Returns whether a workdir holds checkpoints."""
  return _holds_any(workdir / "checkpoints")


def _holds_any(directory: epath.Path) -> bool:
  return directory.is_dir() and any(
      path.name.isdigit() for path in directory.iterdir()
  )


def _check_same_shapes(saved: Any, like: Any, directory) -> None:
  """Raises an error where two models' parameters differ in shape."""
  shapes = [
      {
          jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
          for path, leaf in jax.tree_util.tree_leaves_with_path(params)
      }
      for params in (saved, like)
  ]
  for name in sorted(set(shapes[0]) | set(shapes[1])):
    there, here = (s.get(name, "not there") for s in shapes)
    if there != here:
      raise _AnotherModelError(
          f"The checkpoint in {directory} is that of another model: its {name}"
          f" is {there}, this model's {here}."
          + (" Their vocabularies differ." if name == "embedding" else "")
      )


def _optimizer_item(state: step_lib.TrainState) -> dict[str, Any]:
  item = {"step": state.step, "opt_state": state.opt_state}
  if state.model_state is not None:
    # An array of no size, what there is of no persistent tokens, is not saved.
    leaves = jax.tree.leaves(state.model_state)
    item["model_state"] = [leaf for leaf in leaves if leaf.size]
  return item


def _with_empty(saved: list[jax.Array], like: Any) -> Any:
  """Puts a state's arrays of no size between those that were saved."""
  kept = iter(saved)
  return jax.tree.map(
      lambda x: next(kept) if x.size else jnp.zeros(x.shape, x.dtype), like
  )


def _checksums(state) -> dict[str, int]:
  # The storage format would not notice a flipped bit.
  if isinstance(state, step_lib.TrainState):
    state = state._asdict()
  return checksums.checksums(state)


def _check_sums(found: dict[str, int], saved: dict[str, int]) -> None:
  wrong = [name for name, value in found.items() if saved.get(name) != value]
  if wrong:
    raise CheckpointError(f"the checksum of {wrong[0]} does not fit its values")


def _first_line(error: Exception) -> str:
  return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:300]
