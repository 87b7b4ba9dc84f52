# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The optimizer step."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import titans_jax as titans
from titans_jax.training import config as config_lib
from titans_jax.training import optimizer as optimizer_lib
from titans_jax.training import step as step_lib


class TrainStepTest(parameterized.TestCase):

  def test_accumulation_is_the_step_of_the_whole_batch(self):
    # Given a batch whose microbatches hold unequal numbers of scored tokens
    model = titans.TitansLM(
        titans.presets.tiny(
            variant="transformer",
            num_layers=1,
            dtype="float64",
            param_dtype="float64",
        )
    )
    optimizer = optimizer_lib.make_optimizer(config_lib.OptimizerConfig(), 10)
    state = jax.jit(
        functools.partial(step_lib.init_state, model, optimizer, 0)
    )()
    tokens = jax.random.randint(jax.random.key(0), (4, 16), 0, 256)
    mask = jnp.ones((4, 16), bool).at[0, 5:].set(False)
    batch = {
        "tokens": tokens,
        "targets": jnp.where(mask, jnp.roll(tokens, -1, 1), -1),
        "document_ids": jnp.zeros_like(tokens),
        "mask": mask,
    }
    results = [
        jax.jit(
            functools.partial(
                step_lib.train_step,
                model=model,
                optimizer=optimizer,
                accumulation=accumulation,
                z_loss=0.0,
            )
        )(state, batch)
        for accumulation in (1, 2)
    ]
    (whole, metrics), (parts, part_metrics) = results
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
        whole.params,
        parts.params,
    )
    self.assertEqual(metrics["num_tokens"], part_metrics["num_tokens"])
    for name in ("loss", "accuracy", "grad_norm"):
      np.testing.assert_allclose(metrics[name], part_metrics[name], rtol=1e-9)

  def test_z_loss_is_added(self):
    model = titans.TitansLM(titans.presets.tiny(variant="transformer"))
    tokens = jnp.zeros((1, 8), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    logits, _ = jax.jit(model.apply)(variables, tokens)
    apply = functools.partial(model.apply, method="loss")
    loss, with_z = (
        jax.jit(functools.partial(apply, z_loss=z))(variables, tokens, tokens)[
            0
        ]
        for z in (0.0, 0.1)
    )
    log_z = jax.nn.logsumexp(logits, axis=-1)
    np.testing.assert_allclose(
        with_z - loss, 0.1 * jnp.mean(log_z**2), rtol=1e-4
    )

  def test_memory_cost_closes_the_gates(self):
    config = titans.presets.tiny(
        variant="lmm",
        num_layers=1,
        memory=titans.memory.MLP(depth=1, residual=False),
    )
    model = titans.TitansLM(config)
    tokens = jnp.arange(32, dtype=jnp.int32)[None]
    variables = jax.jit(model.init)(jax.random.key(0), tokens)

    def loss(variables, cost):
      value, metrics, _ = model.apply(
          variables, tokens, tokens, memory_cost=cost, method="loss"
      )
      return value, metrics["memory"]

    cost = 1e3
    free = jax.jit(functools.partial(loss, cost=0.0))
    costly = functools.partial(loss, cost=cost)
    without, gauges = free(variables)
    (with_cost, _), gradient = jax.jit(
        jax.value_and_grad(costly, has_aux=True)
    )(variables)
    most = config.memory.max_learning_rate(config.head_dim, config.chunk_size)
    # The gates of fresh parameters are nearly the same at every token, so that
    # the updates' weights are a geometric series.
    share = gauges.learning_rate / most
    terms = gauges.momentum ** np.arange(32)[:, None]
    np.testing.assert_allclose(
        gauges.effort,
        np.sqrt(share * np.cumsum(terms, axis=0)).mean(axis=0),
        rtol=0.01,
    )
    np.testing.assert_allclose(
        with_cost - without,
        cost * jnp.mean(gauges.effort + 32 * gauges.forget),
        rtol=1e-4,
    )
    with self.subTest("gradient"):
      moved = jax.tree.map(lambda x, g: x - 1e-2 * g, variables, gradient)
      after = free(moved)[1]
      for name in ("learning_rate", "forget"):
        before = jnp.mean(getattr(gauges, name))
        self.assertLess(jnp.mean(getattr(after, name)), 0.8 * before)

  @pytest.mark.exhaustive
  def test_memory_does_not_grow_with_the_length(self):
    # Twice the tokens per sequence, half the sequences.
    model = titans.TitansLM(
        titans.presets.tiny(variant="lmm", num_layers=1, model_dim=16)
    )
    optimizer = optimizer_lib.make_optimizer(config_lib.OptimizerConfig(), 10)
    state = jax.eval_shape(
        functools.partial(step_lib.init_state, model, optimizer, 0)
    )
    train_step = functools.partial(
        step_lib.train_step,
        model=model,
        optimizer=optimizer,
        accumulation=1,
        z_loss=0.0,
    )

    def peak(*shape):
      integers = jax.ShapeDtypeStruct(shape, jnp.int32)
      batch = dict.fromkeys(("tokens", "targets", "document_ids"), integers)
      batch["mask"] = jax.ShapeDtypeStruct(shape, jnp.bool_)
      compiled = jax.jit(train_step).lower(state, batch).compile()
      return compiled.memory_analysis().temp_size_in_bytes

    self.assertLess(peak(2, 2048), 1.1 * peak(4, 1024))

  def test_logits_of_a_large_vocabulary_are_never_held_at_once(self):
    vocab, length = 50_000, 2048
    model = titans.TitansLM(
        titans.presets.tiny(
            variant="transformer",
            vocab_size=vocab,
            num_layers=1,
            window=16,
        )
    )
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 16), jnp.int32))
    )

    def loss(variables, tokens):
      return model.apply(variables, tokens, tokens, method="loss")[0]

    compiled = jax.jit(jax.grad(loss)).lower(variables, tokens).compile()
    all_logits = 4 * vocab * length
    self.assertLess(compiled.memory_analysis().temp_size_in_bytes, all_logits)

  def test_decay_mask(self):
    model = titans.TitansLM(titans.presets.tiny(variant="mag"))
    params = jax.eval_shape(lambda: step_lib.init_params(model, 0))
    mask = optimizer_lib.decay_mask(params)
    block = mask["blocks"]
    memory = block["mixer"]["memory"]
    self.assertTrue(mask["embedding"])
    self.assertTrue(memory["key"]["kernel"])
    self.assertTrue(block["feed_forward"]["down"]["kernel"])
    for kept in (
        memory["gates"]["kernel"],
        memory["gates"]["bias"],
        memory["initial_weights_0"],
        memory["net_gain"],
        memory["norm"]["scale"],
        block["mixer_norm"]["scale"],
        block["persistent"],
        mask["final_norm"]["scale"],
    ):
      self.assertFalse(kept)

  def test_schedule(self):
    schedule = optimizer_lib.learning_rate(
        config_lib.OptimizerConfig(learning_rate=1.0, warmup_steps=10), 100
    )
    rates = np.array([schedule(i) for i in range(101)])
    self.assertGreater(rates[0], 0)  # The first step is not lost.
    np.testing.assert_allclose(rates[10], 1.0, rtol=1e-6)
    np.testing.assert_allclose(rates[100], 0.1, rtol=1e-6)
    self.assertTrue(np.all(np.diff(rates[10:]) <= 0))
