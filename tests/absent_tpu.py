# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""TPUs that are not there, to compile for."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import _aot
from tests.memory import testing
from titans_jax import memory


def devices(test, name: str) -> np.ndarray:
  """Returns a topology's devices, or skips the test."""
  if importlib.util.find_spec("libtpu") is None:
    test.skipTest("Compiling for TPU takes libtpu (the tpu extra).")
  # What was compiled for absent devices cannot be read back.
  option = "jax_persistent_cache_min_compile_time_secs"
  test.addCleanup(jax.config.update, option, getattr(jax.config, option))
  jax.config.update(option, float("inf"))
  return _aot.devices(name)


def compile_memory(test, topology: str, *, dim: int, chunk: int) -> str:
  """Returns the text of a memory's gradients, compiled for one chip."""
  net = memory.MLP()

  def inputs():
    drawn = testing.make_inputs(
        net,
        batch=1,
        dim=dim,
        chunk=chunk,
        length=2 * chunk + 1,
        dtype=jnp.float32,
    )
    return drawn.tokens, drawn.params, drawn.weights

  shapes = jax.eval_shape(inputs)

  def loss(tokens, params, weights):
    state = memory.init_state(net, weights, batch_size=1, chunk_size=chunk)
    outputs, _ = memory.scan(
        net,
        state,
        tokens["queries"],
        tokens["keys"],
        tokens["values"],
        tokens["gates"],
        params,
        packed=True,
        dtype="bfloat16",
    )
    return jnp.sum(outputs)

  mesh = jax.sharding.Mesh(devices(test, topology)[:1], ("data",))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  grad = jax.grad(loss, argnums=(0, 1, 2))
  with jax.set_mesh(mesh), jax.enable_x64(False):
    jitted = jax.jit(grad, in_shardings=whole, out_shardings=whole)
    return jitted.lower(*shapes).compile().as_text()
