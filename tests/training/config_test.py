# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run's configuration survives files and command lines, and is checked."""

import json

from absl.testing import parameterized

from titans_jax import memory
from titans_jax.models import presets
from titans_jax.training import config
from titans_jax.training import overlay


class RunConfigTest(parameterized.TestCase):

  def make(self, **kwargs):
    model = presets.tiny(memory=memory.MLP(depth=3, activation="silu"))
    return config.RunConfig(model=model, **kwargs)

  def test_round_trip_through_json(self):
    run = self.make(seed=7, train=config.TrainConfig(num_steps=5))
    self.assertEqual(
        config.run_config(json.loads(json.dumps(run.to_dict()))), run
    )

  def test_differences(self):
    run = self.make(seed=7, train=config.TrainConfig(num_steps=5))
    saved = json.loads(json.dumps(run.to_dict()))
    # A run that was saved before a field was added had its default
    del saved["train"]["memory_cost"], saved["model"]["forget_bias"]
    self.assertEmpty(list(config.differences(saved, run)))
    # and one of another program has fields that mean nothing here.
    saved["model"]["memory"]["depth"] = 2
    saved["train"]["num_steps"] = 6
    saved["data"]["sauce"] = "soy"
    saved["format_version"] = 99
    self.assertEqual(
        list(config.differences(saved, run)),
        [
            "data.sauce is a field that this program does not have",
            "format_version is 99 there and 1 here",
            "model.memory.depth is 2 there and 3 here",
            "train.num_steps is 6 there and 5 here",
        ],
    )
    other = self.make(seed=7, train=config.TrainConfig(5, memory_cost=0.1))
    saved = run.to_dict()
    del saved["train"]["memory_cost"]
    self.assertEqual(
        list(config.differences(saved, other)),
        ["train.memory_cost is 0.0 there and 0.1 here"],
    )

  def test_other_format_version(self):
    values = self.make().to_dict() | {"format_version": 99}
    with self.assertRaisesRegex(ValueError, "format version 99"):
      config.run_config(values)

  def test_overlay_has_every_field(self):
    values = overlay.run_config_dict(
        model={"variant": "lmm", "chunk_size": 8, "memory": {"depth": 1}}
    )
    run = overlay.run_config(values, 257)
    self.assertEqual(run.model.vocab_size, 257)
    self.assertEqual(run.model.memory, memory.MLP(depth=1))
    values.model.window = 64  # one that may be None takes its type
    values.model.vocab_size = 300
    self.assertEqual(overlay.run_config(values, 257).model.vocab_size, 300)
    values.model.window = None
    self.assertIsNone(overlay.run_config(values, 257).model.window)
    values.model.window = "wide"
    with self.assertRaisesRegex(ValueError, "model.window must be int or None"):
      overlay.run_config(values, 257)

  def test_overlay_names_an_unknown_field(self):
    with self.assertRaisesRegex(ValueError, "DataConfig has no field 'sauce'"):
      overlay.run_config_dict(data={"sauce": "builtin"})

  @parameterized.parameters(
      (config.DataConfig, {"batch_size": 0}, "data.batch_size"),
      (config.DataConfig, {"heldout_fraction": 1.5}, "heldout_fraction"),
      (
          config.DataConfig,
          {"max_heldout_sequences": 0},
          "max_heldout_sequences",
      ),
      (config.OptimizerConfig, {"learning_rate": 0.0}, "learning_rate"),
      (config.OptimizerConfig, {"warmup_steps": -1}, "warmup_steps"),
      (config.TrainConfig, {"num_steps": 0}, "train.num_steps"),
      (config.TrainConfig, {"z_loss": -1.0}, "train.z_loss"),
      (config.TrainConfig, {"memory_cost": -1.0}, "train.memory_cost"),
  )
  def test_values_out_of_range(self, section, values, message):
    with self.assertRaisesRegex(ValueError, message):
      section(**values)

  def test_sections_must_fit(self):
    model = presets.tiny(variant="mac")
    with self.assertRaisesRegex(ValueError, "seed must be at least 0"):
      config.RunConfig(model, seed=-1)
    with self.assertRaisesRegex(ValueError, "=24 is not a multiple of 16"):
      config.RunConfig(model, config.DataConfig(sequence_length=24))
    with self.assertRaisesRegex(ValueError, "batch_size=8 is not a multiple"):
      config.RunConfig(model, train=config.TrainConfig(accumulation=3))
