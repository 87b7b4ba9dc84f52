# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Plans a training run on TPUs or GPUs that need not be there.

    python -m experiments.plan --config=experiments/configs/titans_760m_mac.py \
        --topology=v5p:4x4x4 --config.parallel.data=4 \
        --config.parallel.fsdp=16 --workdir=runs/plan

Compiles the real training step for the slice (libtpu is needed, a TPU is not), or
for machines with GPUs, --topology=h100:2x8 (jax[cuda13] is needed, no GPU), and says whether it fits, what it computes and sends, and an estimate of its
speed and cost: a bound by the chip's peaks, not a measurement. plan.json in the
workdir holds the same. --search tries layouts and batch sizes.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp

from pallas_kernels import tuning
from titans_jax import files
from titans_jax import parallel
from titans_jax.models import language_model
from titans_jax.models import states
from titans_jax.parallel import chips
from titans_jax.training import config as config_lib
from titans_jax.training import optimizer as optimizer_lib
from titans_jax.training import overlay
from titans_jax.training import step as step_lib

from . import _absent
from . import _flags
from . import _hlo
from . import _operations

_TOPOLOGY = flags.DEFINE_string(
    "topology",
    "v5p:2x2x1",
    "Chips of a slice, GENERATION:XxYxZ or XxY; or GPU:MACHINESxGPUS.",
)
_NUM_SLICES = flags.DEFINE_integer(
    "num_slices",
    1,
    "Slices, joined by the data centre's network.",
    lower_bound=1,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder that gets plan.json.", required=True
)
_SEARCH = flags.DEFINE_bool(
    "search",
    False,
    "Compiles the step for several layouts and batch sizes, and names the"
    " quickest that fits.",
)
_CONFIG = _flags.define_config("titans_170m_mac.py")

# Of main memory, for the compiler and the runtime.
_RESERVED = 0.02

# Seconds from one GPU kernel to the next that waits for it.
_GPU_LAUNCH = 3e-6


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(RuntimeError):
    run = overlay.run_config(_CONFIG.value, 32_000)
    workdir = _flags.local_folder("workdir", _WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    devices = _absent.devices(_TOPOLOGY.value, _NUM_SLICES.value)
    if _SEARCH.value:
      plan = _search(run, devices)
    else:
      plan = make_plan(run, devices)
  plan = {
      "topology": _TOPOLOGY.value,
      "num_slices": _NUM_SLICES.value,
      **plan,
  }
  path = workdir / "plan.json"
  files.replace(path, json.dumps(plan, indent=2))
  print(_report(plan))
  print(f"\nWritten to {path}.")


def make_plan(run: config_lib.RunConfig, devices) -> dict[str, Any]:
  """Compiles a run's training step for devices, and describes it.

  Args:
    run: what to train.
    devices: of a topology, real or not.

  Raises:
    ValueError: the run's mesh or batch does not fit the devices.
  """
  model = language_model.TitansLM(run.model)
  optimizer = optimizer_lib.make_optimizer(run.optimizer, run.train.num_steps)
  mesh = parallel.make_mesh(run.parallel, devices)
  parallel.check(
      mesh,
      run.model,
      batch_size=run.data.batch_size,
      accumulation=run.train.accumulation,
  )
  kind = mesh.devices.flat[0].device_kind
  chip = chips.find(kind)
  if chip is None:
    raise ValueError(
        f"The peaks of {kind!r} are not in titans_jax.parallel.chips."
    )
  with jax.set_mesh(mesh):
    like = step_lib.abstract_state(
        model, optimizer, mesh, run.parallel, run.carried_rows
    )
    batch = _abstract_batch(run, mesh)
    traced = step_lib.jit_train_step(
        model,
        optimizer,
        accumulation=run.train.accumulation,
        z_loss=run.train.z_loss,
        memory_cost=run.train.memory_cost,
        like=like,
    ).trace(like, batch)
    platform = mesh.devices.flat[0].platform
    count = _operations.of_program(
        traced.jaxpr, "tpu" if platform == "tpu" else "cuda"
    )
    start = time.perf_counter()
    compiled, refused = None, None
    try:
      compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      refused = str(error)
    seconds = time.perf_counter() - start
  plan: dict[str, Any] = {
      "chip": chip.name,
      "devices": mesh.size,
      "processes": len({d.process_index for d in mesh.devices.flat}),
      "mesh": dict(mesh.shape),
      "layout": run.parallel.layout,
      "batch_size": run.data.batch_size,
      "sequence_length": run.data.sequence_length,
      "accumulation": run.train.accumulation,
      "parameters": sum(x.size for x in jax.tree.leaves(like.params)),
      "device_memory_bytes": chip.memory,
      "compile_seconds": round(seconds, 1),
      "kernels": {
          name: round(calls / mesh.size)
          for name, calls in sorted(count.kernels.items())
      },
      "memory_state_bytes_per_sequence": _state_bytes(model, like.params),
  }
  of_model = step_lib.model_operations(run, like)
  plan["flops_per_step"] = {
      "program": count.total,
      "model": count.once,
      "recomputed": count.again,
      "formula": sum(of_model.values()),
      "formula_by_part": of_model,
      "model_over_formula": count.once / sum(of_model.values()),
  }
  state = {
      "parameters": parallel.bytes_on_device(like.params),
      "optimizer": parallel.bytes_on_device(like.opt_state),
      "batch": parallel.bytes_on_device(batch),
  }
  if like.model_state is not None:
    state["carried model state"] = parallel.bytes_on_device(like.model_state)
  if compiled is None:
    plan |= {
        "fits": False,
        "bytes_per_device": state,
        "largest_buffers": _largest_buffers(refused),
        "collectives": [],
    }
    return plan
  memory = compiled.memory_analysis()
  total = (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.generated_code_size_in_bytes
  )
  plan["bytes_per_device"] = state | {
      "activations, gradients and scratch": memory.temp_size_in_bytes,
      "program": memory.generated_code_size_in_bytes,
      "total": total,
  }
  plan["fits"] = bool(total < (1 - _RESERVED) * chip.memory)
  text = compiled.as_text()
  plan["collectives"] = _collectives(text)
  plan["estimate"] = _estimate(run, plan, chip, text, mesh)
  return plan


def _abstract_batch(run: config_lib.RunConfig, mesh) -> dict[str, Any]:
  shape = (run.data.batch_size, run.data.sequence_length)
  sharding = parallel.batch_sharding(mesh)
  kinds = {
      "tokens": jnp.int32,
      "targets": jnp.int32,
      "document_ids": jnp.int32,
      "mask": jnp.bool_,
  }
  return {
      name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
      for name, dtype in kinds.items()
  }


def _state_bytes(model, params) -> int:
  """Returns the bytes of a sequence's state while it is read."""
  shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params
  )
  state = jax.eval_shape(
      lambda p: model.init_state({"params": p}, batch_size=1), shapes
  )
  return states.size_in_bytes(state)


def _largest_buffers(message: str) -> list[str]:
  """Returns what the compiler says of a program that does not fit."""
  lines = [line.strip() for line in message.splitlines()]
  told = [
      line
      for line in lines
      if re.match(r"(Size|Shape|Operator|XLA label|Used|Total hbm)", line)
      or "Ran out of memory" in line
  ]
  return told[:40] or lines[:10]


def _collectives(text: str) -> list[dict[str, Any]]:
  """Returns the collectives of a step by kind, shape and source, largest first."""
  rows: dict[tuple[str, str, str], dict[str, Any]] = {}
  for found in _hlo.collectives(text):
    key = (found.kind, found.shape, found.source)
    row = rows.setdefault(
        key,
        {
            "kind": found.kind,
            "shape": found.shape,
            "source": found.source,
            "times": 0,
            "bytes": 0,
        },
    )
    row["times"] += found.times
    row["bytes"] += found.bytes
  return sorted(rows.values(), key=lambda row: -row["bytes"])


def _estimate(run, plan, chip, text, mesh) -> dict[str, Any]:
  """Bounds a step's time by the chip's peaks: what each would need alone."""
  flops = plan["flops_per_step"]
  sent = sum(
      row["bytes"] * (2 if row["kind"] == "all-reduce" else 1)
      for row in plan["collectives"]
  )
  moved = sum(m.bytes for m in _hlo.moved(text))
  platform = mesh.devices.flat[0].platform
  seconds = {
      "matrix units": flops["program"] / mesh.size / chip.flops,
      "main memory": moved / chip.memory_bandwidth,
      "interconnect": sent / chip.interconnect,
      "chain of chunks": _chain_seconds(run, chip),
  }
  # The last is no bound for a GPU, but an assumption.
  bounds = list(seconds)[: 4 if platform == "tpu" else 3]
  bound = max(bounds, key=lambda name: seconds[name])
  step = seconds[bound]
  tokens = run.data.batch_size * run.data.sequence_length
  hours = run.train.num_steps * step * mesh.size / 3600
  return {
      "meaning": (
          "an estimate: the longest of the times that each part would need"
          " alone at its peak; a real step is slower. Between slices, or"
          " machines with GPUs, all is sent as quickly as within one. A GPU's"
          " chain of chunks assumes 3 microseconds a kernel, and is no bound"
      ),
      "seconds": seconds,
      "bound_by": bound,
      "step_seconds": step,
      "tokens_per_second": tokens / step,
      "mfu": flops["formula"] / mesh.size / chip.flops / step,
      "main_memory_bytes": moved,
      "sent_bytes": sent,
      "token_budget": tokens * run.train.num_steps,
      "chip_hours": hours,
  }


def _chain_seconds(run, chip) -> float:
  """Returns the least time of the chunks of a sequence, one after another.

  A chunk's products wait for each other: its keys go through the layers, the
  error comes back, the weights are updated, and twice that in the backward
  pass, which runs the forward pass again. On a TPU each takes at least as many
  cycles as it has rows, and the matrix unit is wide; on a GPU a kernel's launch.
  """
  config = run.model
  if config.variant == "transformer":
    return 0.0
  generation = next(n for n, c in chips.CHIPS.items() if c is chip)
  if generation in tuning.CHIPS:
    unit = tuning.CHIPS[generation]
    clock = chip.flops / (2 * unit.macs_per_cycle)
    product = (config.chunk_size + unit.lanes) / clock
  else:
    product = _GPU_LAUNCH  # as if no kernel kept a GPU's chunks together
  products = 2 * len(config.memory.layer_shapes(config.head_dim))
  chunks = -(-run.data.sequence_length // config.chunk_size)
  passes = 4 if not config.remat else 5
  times = config.num_layers * chunks * passes * run.train.accumulation
  return times * products * product


def _search(run: config_lib.RunConfig, devices) -> dict[str, Any]:
  """Returns the plan with the most tokens per second that fits.

  Tries every layout with its own sizes, and rows per device from one (and
  microbatch), doubled until they do not fit.
  """
  best: dict[str, Any] | None = None
  tried = []
  for layout in parallel.LAYOUTS:
    rows = run.train.accumulation
    while rows <= 64 * run.train.accumulation:
      config = parallel.ParallelConfig(layout, rules=run.parallel.rules)
      try:
        tensor = config.sizes(len(devices))["tensor"]
        batch_size = rows * len(devices) // tensor
        candidate = dataclasses.replace(
            run,
            parallel=config,
            data=dataclasses.replace(run.data, batch_size=batch_size),
        )
        plan = make_plan(candidate, devices)
      except ValueError as error:  # a mesh that does not divide the model
        tried.append({"layout": layout, "fits": False, "reason": str(error)})
        print(tried[-1], flush=True)
        break
      tried.append(
          {
              "layout": layout,
              "batch_size": batch_size,
              "fits": plan["fits"],
              "tokens_per_second": plan.get("estimate", {}).get(
                  "tokens_per_second"
              ),
          }
      )
      print(tried[-1], flush=True)
      if not plan["fits"]:
        break
      if best is None or _rate(plan) > _rate(best):
        best = plan
      rows *= 2
  if best is None:
    raise ValueError(
        "No layout fits, with one row a device: more chips, a larger"
        " parallel.tensor, or model.remat=True would help."
    )
  return best | {"tried": tried}


def _rate(plan) -> float:
  return plan["estimate"]["tokens_per_second"]


def _report(plan: dict[str, Any]) -> str:
  """Returns a plan for people."""
  gib = 2**30
  mesh = " x ".join(f"{k}={v}" for k, v in plan["mesh"].items())
  flops = plan["flops_per_step"]
  lines = [
      f"{plan['devices']} x {plan['chip']} as {mesh} ({plan['layout']}),"
      f" {plan['batch_size']:,} x {plan['sequence_length']:,} tokens a step,"
      f" {plan['parameters']:,} parameters.",
      f"Compiled in {plan['compile_seconds']:.0f} s. Fits:"
      f" {'yes' if plan['fits'] else 'NO'}.",
      f"Memory of a device ({plan['device_memory_bytes'] / gib:.0f} GiB):",
      *(
          f"  {name:<36}{size / gib:9.3f} GiB"
          for name, size in plan["bytes_per_device"].items()
      ),
      "State of a sequence while it is read:"
      f" {plan['memory_state_bytes_per_sequence'] / 2**20:.1f} MiB.",
      f"Operations of a step: {flops['model']:.4g} of the model"
      f" ({flops['model_over_formula']:.3f} of the formula's), and"
      f" {flops['recomputed']:.4g} recomputed.",
      f"Kernels, calls on a device: {plan['kernels'] or 'none'}",
  ]
  if "largest_buffers" in plan:
    lines += ["What does not fit:", *plan["largest_buffers"]]
    return "\n".join(lines)
  lines.append("Collectives of a device (largest):")
  lines += [
      f"  {row['kind']:<20}{row['shape']:<28}{row['times']:>6} x"
      f" {row['bytes'] / 1e9:9.3f} GB  {row['source'][-60:]}"
      for row in plan["collectives"][:12]
  ]
  estimate = plan["estimate"]
  lines.append("Estimate, each alone at the chip's peak:")
  lines += [
      f"  {name:<20}{seconds * 1e3:10.2f} ms"
      for name, seconds in estimate["seconds"].items()
  ]
  lines.append(
      f"  at best {estimate['step_seconds'] * 1e3:.1f} ms a step (bound by"
      f" {estimate['bound_by']}): {estimate['tokens_per_second']:,.0f} tokens/s,"
      f" MFU {estimate['mfu']:.1%}, {estimate['chip_hours']:,.0f} chip-hours for"
      f" {estimate['token_budget'] / 1e9:.1f}B tokens"
  )
  return "\n".join(lines)


def run() -> None:
  app.run(main)


if __name__ == "__main__":
  run()
