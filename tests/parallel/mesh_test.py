# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Meshes, rules, and what they refuse."""

from absl.testing import parameterized
import jax

import titans_jax as titans
from titans_jax import parallel
from titans_jax.models import config as model_config
from titans_jax.parallel import chips
from titans_jax.parallel import rules
from titans_jax.training import step as step_lib

P = jax.sharding.PartitionSpec


class MeshTest(parameterized.TestCase):

  @parameterized.parameters(
      ({"layout": "dp"}, (8, 1, 1)),
      ({"layout": "fsdp"}, (1, 8, 1)),
      ({"layout": "fsdp", "data": 2}, (2, 4, 1)),
      ({"layout": "fsdp_tp"}, (1, 4, 2)),
      ({"layout": "fsdp_tp", "tensor": 4, "data": 2}, (2, 1, 4)),
  )
  def test_sizes(self, fields, shape):
    mesh = parallel.make_mesh(parallel.ParallelConfig(**fields))
    self.assertEqual(tuple(mesh.shape.values()), shape)
    self.assertEqual(mesh.axis_names, ("data", "fsdp", "tensor"))

  @parameterized.parameters(
      ({"data": 3}, "does not match 8 devices"),
      ({"layout": "fsdp", "fsdp": 4}, "does not match 8 devices"),
      ({"layout": "fsdp_tp", "tensor": 16}, "does not match 8 devices"),
  )
  def test_other_devices(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      parallel.make_mesh(parallel.ParallelConfig(**fields))

  @parameterized.parameters(
      ({"layout": "pp"}, "layout must be one of"),
      ({"data": 0}, "data must be at least 1"),
      ({"rules": {"embeds": "fsdp"}}, "names the logical axes .*'embeds'"),
      ({"rules": {"embed": "model"}}, "mesh axes .*'model' is none"),
  )
  def test_bad_config(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      parallel.ParallelConfig(**fields)

  @parameterized.parameters(
      (
          {"num_heads": 3, "head_dim": 8},
          8,
          1,
          "does not divide model.num_heads",
      ),
      ({"ffn_dim": 33}, 8, 1, "does not divide model.ffn_dim=33"),
      ({}, 6, 1, "batch_size=6 is not a multiple of 4"),
      ({}, 8, 4, "times train.accumulation=4"),
  )
  def test_what_an_axis_does_not_divide(
      self, fields, batch_size, accumulation, message
  ):
    mesh = parallel.make_mesh(parallel.ParallelConfig("fsdp_tp"))
    config = titans.presets.tiny(**fields)
    with self.assertRaisesRegex(ValueError, message):
      parallel.check(
          mesh, config, batch_size=batch_size, accumulation=accumulation
      )


class RulesTest(parameterized.TestCase):

  @parameterized.parameters(*model_config.VARIANTS)
  def test_every_parameter_has_its_axes(self, variant):
    config = titans.presets.tiny(
        variant=variant, forget="token", tie_embeddings=False
    )
    params = jax.eval_shape(
        lambda: step_lib.init_params(titans.TitansLM(config), 0)
    )
    layout = parallel.ParallelConfig("fsdp_tp")
    mesh = parallel.make_mesh(layout)
    shardings = parallel.params_shardings(params, mesh, layout)
    for path, sharding in jax.tree_util.tree_leaves_with_path(shardings):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      axes = rules.logical_axes(name)
      if name.endswith(("value/kernel", "gate/kernel")) and "gates" not in name:
        self.assertIn("embed", axes, name)
        self.assertEqual(P(*sharding.spec[-2:]), P("fsdp", "tensor"), name)
    self.assertEqual(shardings["embedding"].spec, P(("tensor",), ("fsdp",)))

  def test_unknown_parameter(self):
    with self.assertRaisesRegex(ValueError, "'blocks/other' has no entry"):
      rules.logical_axes("blocks/other")

  def test_rules_are_data(self):
    layout = parallel.ParallelConfig(
        "fsdp", rules={"embed": "", "hidden": "data,fsdp"}
    )
    mesh = parallel.make_mesh(layout)
    kernel = jax.ShapeDtypeStruct((2, 32, 96), "float32")
    odd = jax.ShapeDtypeStruct((2, 32, 97), "float32")
    tree = {"feed_forward": {"up": {"kernel": kernel}, "gate": {"kernel": odd}}}
    found = parallel.params_shardings(tree, mesh, layout)["feed_forward"]
    self.assertEqual(found["up"]["kernel"].spec, P((), (), ("data", "fsdp")))
    # What does not divide stays whole.
    self.assertEqual(found["gate"]["kernel"].spec, P((), (), ()))


class StateTest(parameterized.TestCase):

  @parameterized.parameters(*model_config.VARIANTS)
  def test_rows_and_heads_lie_apart(self, variant):
    model = titans.TitansLM(titans.presets.tiny(variant=variant))
    mesh = parallel.make_mesh(parallel.ParallelConfig("fsdp_tp"))

    def make(rows):
      params = step_lib.init_params(model, 0)
      return model.init_state({"params": params}, batch_size=rows)

    few, many = (jax.eval_shape(lambda n=n: make(n)) for n in (4, 8))
    shardings = parallel.state_shardings(many, mesh)
    leaves = jax.tree_util.tree_leaves_with_path(shardings)
    for (path, sharding), a, b in zip(
        leaves, jax.tree.leaves(few), jax.tree.leaves(many), strict=True
    ):
      spec = (*sharding.spec, *[None] * (b.ndim - len(sharding.spec)))
      # What grows with the rows is theirs; everything with heads has them apart.
      self.assertEqual(a.shape != b.shape, spec[0] is not None, path)
      if b.ndim == 4:
        heads = [spec[axis] for axis in (1, 2)]
        self.assertIn("tensor", heads, path)
        self.assertEqual(
            b.shape[1 + heads.index("tensor")], model.config.num_heads
        )


class ChipsTest(parameterized.TestCase):

  @parameterized.parameters(
      ("TPU v5p", "TPU v5p"),
      ("TPU v5 lite", "TPU v5e"),
      ("NVIDIA H200", "NVIDIA H200"),
      ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
      ("cpu", None),
  )
  def test_find(self, kind, name):
    chip = chips.find(kind)
    self.assertEqual(chip and chip.name, name)
