# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Our side of `experiments.peers`: measures one point and prints a JSON line.

    python -m experiments._peer_points --bench=DIR --config=mem_h4 --mode=fwdbwd

A process of its own, so that compilation and peak memory are the point's alone.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib

from absl import app
from absl import flags
import jax
import jax.numpy as jnp

from titans_jax import inference
from titans_jax import memory
from titans_jax.layers import neural_memory
from titans_jax.models import config as model_config
from titans_jax.models import language_model
from titans_jax.training import config as training_config
from titans_jax.training import optimizer as optimizer_lib
from titans_jax.training import step as step_lib

from . import _flags
from . import _products

_BENCH = flags.DEFINE_string(
    "bench", None, "Folder with common.py.", required=True
)
_CONFIG = flags.DEFINE_string("config", None, "Of CONFIGS.", required=True)
_MODE = flags.DEFINE_string(
    "mode",
    None,
    "fwdbwd or products (a memory); train, gen_cache or gen_cache_b8 (a model).",
    required=True,
)
_HEADS = flags.DEFINE_enum(
    "heads", "memory", ["attention", "memory"], "Whose heads a model has."
)


def main(argv) -> None:
  _flags.start(argv)
  path = pathlib.Path(_BENCH.value) / "common.py"
  spec = importlib.util.spec_from_file_location("common", path)
  assert spec is not None and spec.loader is not None
  common = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(common)
  config = common.CONFIGS[_CONFIG.value]
  point = {
      "impl": "titans_jax",
      "jax": jax.__version__,
      "config": _CONFIG.value,
      "mode": _MODE.value,
  }
  if _MODE.value == "products":
    common.emit(**point, **_measure_products(config, common.measure))
    return
  iters = 8
  if _MODE.value == "fwdbwd":
    run, num_params, tokens = _memory(config)
  else:
    model = _model(config, _HEADS.value)
    if _MODE.value == "train":
      run, num_params, tokens = _train(model, config)
    else:
      batch = 8 if _MODE.value.endswith("_b8") else 1
      run, num_params, tokens = _generate(model, batch, common.GEN)
      iters = 3
  measured = common.measure(
      run, warmup=1 if _MODE.value.startswith("gen") else 2, iters=iters
  )
  common.emit(
      **point,
      params=num_params,
      tokens_per_s=round(tokens / measured["median_s"], 1),
      **measured,
  )


def _count(params) -> int:
  return sum(p.size for p in jax.tree.leaves(params))


def _memory(config):
  """Forward and backward through the layer, with respect to its parameters."""
  layer = neural_memory.NeuralMemory(
      model_dim=config["dim"],
      num_heads=config["heads"],
      head_dim=config["dim_head"],
      chunk_size=config["chunk_size"],
      net=memory.MLP(config["depth"], config["expansion"]),
  )
  shape = (config["batch"], config["seq"], config["dim"])
  x = jax.random.normal(jax.random.key(0), shape)
  variables = jax.jit(layer.init)(jax.random.key(1), x[:, :1])

  @jax.jit
  @jax.grad
  def gradients(variables, x):
    return jnp.mean(jnp.square(layer.apply(variables, x)[0]))

  def run():
    jax.block_until_ready(gradients(variables, x))

  return run, _count(variables), config["batch"] * config["seq"]


def _model(config, heads: str) -> language_model.TitansLM:
  """Returns a model of the peer's sizes, with its attention's or its memory's
  heads. The peer's chunk is its segment, with the long-term tokens in it."""
  prefix = {"attention": "", "memory": "mem_"}[heads]
  return language_model.TitansLM(
      model_config.TitansConfig(
          variant="mac",
          vocab_size=config["vocab"],
          num_layers=config["depth"],
          model_dim=config["dim"],
          num_heads=config[prefix + "heads"],
          head_dim=config[prefix + "dim_head"],
          memory=memory.MLP(config["mem_depth"], config["mem_expansion"]),
          chunk_size=config["segment_len"],
          segment_length=config["segment_len"],
          num_persistent=config["persist"],
      )
  )


def _train(model, config):
  """Loss, gradients, clipping and AdamW, as the training loop does them."""
  optimizer = optimizer_lib.make_optimizer(
      training_config.OptimizerConfig(
          learning_rate=2e-4, max_grad_norm=0.5, weight_decay=0.01
      ),
      1000,
  )
  init = functools.partial(step_lib.init_state, model, optimizer, 0)
  state = jax.jit(init)()
  num_params = _count(state.params)
  shape = (config["batch"], config["seq"])
  text = jax.random.randint(
      jax.random.key(0), (shape[0], shape[1] + 1), 0, config["vocab"]
  )
  # Whole sequences, as the peer's: nothing is padded, no document starts.
  batch = {
      "tokens": text[:, :-1],
      "targets": text[:, 1:],
      "mask": None,
      "document_ids": None,
  }
  train_step = step_lib.jit_train_step(model, optimizer)

  def run():
    nonlocal state
    state, metrics = train_step(state, batch)
    jax.block_until_ready((state, metrics))

  return run, num_params, shape[0] * shape[1]


def _generate(model, batch: int, lengths: dict):
  """Prompt and new tokens through `titans.generate`, state and all."""
  params = jax.jit(lambda: step_lib.init_params(model, 0))()
  prompt = jax.random.randint(
      jax.random.key(0), (1, lengths["prompt"]), 0, model.config.vocab_size
  )
  prompts = jnp.repeat(prompt, batch, axis=0)
  new_tokens = lengths["total"] - lengths["prompt"]

  def run():
    jax.block_until_ready(
        inference.generate(
            model,
            {"params": params},
            prompts,
            max_new_tokens=new_tokens,
            rng=jax.random.key(1),
        )
    )

  return run, _count(params), batch * new_tokens


def _measure_products(config, measure) -> dict:
  """Times the rule, its products alone, and one large product, in turns."""
  products = _products.chunk_products(config)
  num_chunks = config["seq"] // config["chunk_size"]
  operations = num_chunks * sum(p.operations * n for p, n in products.items())
  large, large_args, large_operations = _products.large()
  calls = {
      "rule": _products.rule_gradients(config),
      "products": _products.repeat(products, num_chunks),
      "large": (large, large_args),
  }
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for name, (fn, args) in calls.items():
    calls[name] = (jax.jit(fn), args)
  for _ in range(5):
    for name, (fn, args) in calls.items():
      seconds[name].append(_seconds(measure, fn, args))
  medians = {name: sorted(times)[2] for name, times in seconds.items()}
  ratios = [a / b for a, b in zip(seconds["rule"], seconds["products"])]
  return {
      "rule_s": medians["rule"],
      "products_s": medians["products"],
      "ratio": round(sorted(ratios)[2], 3),
      "products_gflops": round(operations / medians["products"] / 1e9, 1),
      "large_gflops": round(large_operations / medians["large"] / 1e9, 1),
  }


def _seconds(measure, fn, args) -> float:
  run = lambda: jax.block_until_ready(fn(*args))
  return measure(run, warmup=1, iters=3)["median_s"]


if __name__ == "__main__":
  app.run(main)
