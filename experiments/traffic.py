# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes that a training step moves through a TPU's main memory.

    python -m experiments.traffic --preset=titans_170m --variant=lmm

The step is compiled for a chip that need not be there (libtpu is), once with the
fused kernel and once with `jax.lax.scan`; the counts are read from the compiled
programs, so they are the compiler's, not a measurement. A preset of the paper's
takes minutes to compile.
"""

from __future__ import annotations

import json
import time
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import optax

from pallas_kernels import _aot
from titans_jax.models import language_model
from titans_jax.models import presets
from titans_jax.training import step as step_lib

from . import _flags
from . import _hlo

_PRESET = flags.DEFINE_string(
    "preset", "titans_170m", "A function of titans_jax.presets."
)
_VARIANT = flags.DEFINE_enum(
    "variant", "lmm", ["lmm", "mac", "mag", "mal"], "Architecture."
)
_SEQ_LEN = flags.DEFINE_integer("seq_len", 4096, "Tokens a row.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Rows.", lower_bound=1)
_REMAT = flags.DEFINE_bool(
    "remat", False, "Recomputes each block's activations."
)
_CHIP = flags.DEFINE_enum(
    "chip", "v5p", sorted(_aot.TOPOLOGIES), "TPU generation; one chip of it."
)
_JSON = flags.DEFINE_bool("json", False, "Prints JSON instead of a table.")

# "auto" is the kernel on a TPU.
_IMPLEMENTATIONS = {"kernel": "auto", "lax.scan": "xla"}


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(ValueError):
    make = getattr(presets, _PRESET.value, None)
    if make is None:
      raise ValueError(
          f"--preset={_PRESET.value} is not in titans_jax.presets."
      )
    chips = _aot.devices(_aot.TOPOLOGIES[_CHIP.value])
    mesh = jax.sharding.Mesh(chips[:1], ("data",))
    rows: list[dict[str, Any]] = []
    for name, implementation in _IMPLEMENTATIONS.items():
      config = make(
          _VARIANT.value, implementation=implementation, remat=_REMAT.value
      )
      start = time.time()
      text = _compiled_step(language_model.TitansLM(config), mesh)
      rows.append({"implementation": name, **_count(text)})
      rows[-1]["compile_seconds"] = round(time.time() - start, 1)
  if _JSON.value:
    print(json.dumps(rows))
    return
  print(
      f"{_PRESET.value} {_VARIANT.value}, {_BATCH_SIZE.value} x"
      f" {_SEQ_LEN.value} tokens, one {_CHIP.value}: bytes through main memory"
      " in a training step, as compiled."
  )
  for row in rows:
    print(
        f"{row['implementation']:>9}  memory layers"
        f" {row['memory_bytes'] / 1e9:7.1f} GB, whole step"
        f" {row['step_bytes'] / 1e9:7.1f} GB"
        f"  (compiled in {row['compile_seconds']:.0f} s)"
    )
  kernel, scan = rows
  for key, what in (("memory_bytes", "memory layers"), ("step_bytes", "step")):
    print(f"{what}: {scan[key] / kernel[key]:.2f} times less with the kernel")


def _compiled_step(model, mesh) -> str:
  optimizer = optax.adamw(1e-3)
  shape = (_BATCH_SIZE.value, _SEQ_LEN.value)
  tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
  batch = {
      "tokens": tokens,
      "targets": tokens,
      "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
      "document_ids": tokens,
  }
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  step = step_lib.jit_train_step(
      model, optimizer, in_shardings=sharding, out_shardings=sharding
  )
  state = jax.eval_shape(lambda: step_lib.init_state(model, optimizer, 0))
  with jax.set_mesh(mesh):
    text = step.lower(state, batch).compile().as_text()
  assert text is not None
  return text


def _count(text: str) -> dict[str, int]:
  """Returns the bytes of the memory layers and of the whole step.

  What is moved between the loop over blocks and the arrays in which it keeps all
  blocks' activations for the backward pass is in the whole step only.
  """
  moved = list(_hlo.moved(text))
  return {
      "memory_bytes": sum(m.bytes for m in moved if "/memory" in m.source),
      "step_bytes": sum(m.bytes for m in moved),
  }


def run() -> None:
  app.run(main)


if __name__ == "__main__":
  run()
