# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The TPU kernels against plain attention, interpreted, and compiled for TPU."""

import functools
import re
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from tests import absent_tpu
from titans_jax.layers import attention
from titans_jax.layers import splash
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import networks
from titans_jax.models import memory_as_context
from titans_jax.models import presets

_interpreted = functools.partial(splash.attend, interpret=True)


def make_arguments(length, size, prefix, head_dim, parts):
  """Returns the arguments of `attend_causally`, and a cotangent."""
  shapes = {
      "queries": (2, length),
      "rotated": (2, length),
      "prefix": [(1, prefix)] * 2,
      "parts": [[(2, size)] * 2] * parts,
      "cotangent": (2, length),
  }
  random = np.random.default_rng(0)

  def draw(shape):
    return jnp.array(random.normal(size=(*shape, 2, head_dim)), jnp.float32)

  def draw_all(shape):
    if not isinstance(shape, list):
      return draw(shape)
    if isinstance(shape[0], list):
      return tuple(map(draw_all, shape))
    return attention.KeysValues(*map(draw, shape))

  *arguments, cotangent = map(draw_all, shapes.values())
  return arguments, cotangent


def values_and_gradients(arguments, cotangent, attend, **options):
  """Returns the outputs of an `attend_causally`, and all its gradients."""
  attend = functools.partial(attend, **options)

  @jax.jit
  def both(*arguments):
    outputs, gradient = jax.vjp(attend, *arguments)
    return outputs, gradient(cotangent)

  return jax.tree.leaves(both(*arguments))


class SplashTest(parameterized.TestCase):

  @parameterized.named_parameters(
      # length, size, prefix, head dimension, window, parts, positions
      ("window_and_prefix", 130, 130, 3, 12, 33, 1, None),
      ("no_prefix", 128, 128, 0, 48, 200, 1, None),
      (
          "documents",
          150,
          150,
          5,
          6,
          64,
          1,
          [[*range(70), *range(10), *range(70)], [*range(150)]],
      ),
      (
          "history",
          130,
          194,
          5,
          8,
          64,
          1,
          [[*range(7, 137)], [*range(100, 150), *range(80)]],
      ),
      ("segment", 128, 128, 130, 8, 128, 2, None),
      ("segment_of_no_whole_block", 130, 130, 4, 8, 130, 2, None),
  )
  def test_equals_plain_attention(
      self, length, size, prefix, head_dim, window, parts, positions
  ):
    arguments, cotangent = make_arguments(length, size, prefix, head_dim, parts)
    if positions is not None:
      positions = jnp.array(positions, jnp.int32)

    run = functools.partial(
        values_and_gradients,
        arguments,
        cotangent,
        positions=positions,
        window=window,
    )
    # In 64-bit mode this takes the plain path everywhere.
    plain = run(attention.attend_causally)
    for actual, expected in zip(run(_interpreted), plain, strict=True):
      np.testing.assert_allclose(actual, expected, atol=1e-5)

  def test_layer_with_history_and_documents(self):
    layer = attention.WindowAttention(
        model_dim=8, num_heads=2, head_dim=4, window=24
    )
    x = jax.random.normal(jax.random.key(0), (2, 40, 8))
    prefix = jax.random.normal(jax.random.key(1), (3, 8))
    starts = jnp.zeros((2, 40), bool).at[0, 16].set(True)

    def run(module, x):
      state = module.initial_state(prefix).broadcast(2)
      first = layout_lib.align((2, 10), 8)
      _, state = module(first.arrange(x[:, :10]), state, first)
      position = jnp.array([10, 10], jnp.int32)
      then = layout_lib.align(
          (2, 40), 8, starts=starts, offset=position % 8, position=position
      )
      return then.restore(module(then.arrange(x), state, then)[0])

    expected, variables = jax.jit(
        lambda x: layer.init_with_output(jax.random.key(2), x, method=run)
    )(x)
    with mock.patch.object(attention, "attend_causally", _interpreted):
      actual = jax.jit(functools.partial(layer.apply, method=run))(variables, x)
    np.testing.assert_allclose(actual, expected, atol=1e-5)

  def test_says_what_it_does_not_suit(self):
    queries = jnp.zeros((1, 128, 1, 8), jnp.float32)
    self.assertIn("64-bit mode", splash.why_not(queries))
    self.assertIn("float64", splash.why_not(queries.astype(jnp.float64)))
    self.assertIn("16 queries", splash.why_not(queries[:, :16]))
    with jax.enable_x64(False):
      self.assertIsNone(splash.why_not(queries))

  def test_large_rows_take_large_blocks(self):
    blocks = {128: 128, 512: 512, 600: 128, 640: 128, 768: 256, 4100: 512}
    for size, block in blocks.items():
      self.assertEqual(splash._block(size), block, size)


def _window_layer(x):
  layer = attention.WindowAttention(
      model_dim=32, num_heads=2, head_dim=16, window=64
  )

  def run(module, x):
    state = module.initial_state(jnp.zeros((4, 32))).broadcast(1)
    return module(x, state, layout_lib.align(x.shape[:2], 1))[0]

  return functools.partial(layer.apply, method=run), functools.partial(
      layer.init, jax.random.key(0), x, method=run
  )


def _mac_layer(x):
  config = presets.tiny(
      variant="mac", model_dim=32, num_heads=2, head_dim=16, chunk_size=128,
      segment_length=128, memory=networks.MLP(depth=1, residual=False),
  )  # fmt: skip
  layer = memory_as_context.MemoryAsContext(config)

  def run(module, x):
    state = module.initial_state(jnp.zeros((4, 32))).broadcast(1)
    layout = layout_lib.align(x.shape[:2], config.segment_length)
    return module(x, state, layout, True)[0]

  return functools.partial(layer.apply, method=run), functools.partial(
      layer.init, jax.random.key(0), x, method=run
  )


class CompiledTest(parameterized.TestCase):
  """A program compiled on a machine without TPUs holds the kernels."""

  @parameterized.product(
      layer=[_window_layer, _mac_layer], topology=["v5p:2x2x1"]
  )
  def test_holds_the_kernels(self, layer, topology):
    devices = absent_tpu.devices(self, topology)
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    with jax.enable_x64(False):
      x = jnp.zeros((1, 128, 32), jnp.float32)
      apply, init = layer(x)
      arguments = jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
          (jax.eval_shape(init), x),
      )
      gradient = jax.grad(lambda v, x: jnp.sum(apply(v, x) ** 2), (0, 1))
      compiled = jax.jit(gradient).lower(*arguments).compile()
    kernels = re.findall(r"splash_mha_(fwd|dq|dkv)\w*", compiled.as_text())
    self.assertEqual(set(kernels), {"fwd", "dq", "dkv"})

  def test_under_a_mesh_of_absent_devices(self):
    devices = absent_tpu.devices(self, "v5e:2x2")
    mesh = jax.make_mesh(
        (4,), ("data",), (jax.sharding.AxisType.Auto,), devices=devices
    )
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    x = jax.ShapeDtypeStruct((4, 128, 1, 16), jnp.float32, sharding=sharding)

    def attend(x):
      none = attention.KeysValues(x[:1, :0], x[:1, :0])
      pair = attention.KeysValues(x, x)
      return attention.attend_causally(x, x, none, [pair], window=48)

    # No other test has a mask of this window, so none is at hand.
    with jax.enable_x64(False), jax.set_mesh(mesh):
      compiled = jax.jit(attend).lower(x).compile()
    self.assertIn("splash_mha_fwd", compiled.as_text())
