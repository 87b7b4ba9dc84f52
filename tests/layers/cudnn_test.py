# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention by cuDNN: its use, and compiled for GPUs that are not there."""

import functools
import re
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import _aot_gpu
from pallas_kernels import tuning
from tests import absent_gpu
from tests.layers import splash_test
from titans_jax.layers import attention
from titans_jax.layers import cudnn
from titans_jax.models import language_model
from titans_jax.models import presets

_MASKS = types.SimpleNamespace(NO_MASK="none", CAUSAL="causal")


def _scores(queries, keys, scale, mask_type, sliding_window_length):
  """Returns scaled scores [B, H, T, S], as cuDNN masks them."""
  scores = scale * jnp.einsum("bthd,bshd->bhts", queries, keys)
  behind = jnp.arange(scores.shape[2])[:, None] - jnp.arange(scores.shape[3])
  seen = jnp.ones_like(behind, bool)
  if mask_type == _MASKS.CAUSAL:
    seen = behind >= 0
    if sliding_window_length is not None:
      seen &= behind < sliding_window_length
  return jnp.where(seen, scores, -jnp.inf)


def _forward(queries, keys, values, *, return_residual, **options):
  assert return_residual
  scores = _scores(queries, keys, **options)
  z = jax.nn.logsumexp(scores, axis=-1)
  weights = jnp.exp(scores - z[..., None])
  return jnp.einsum("bhts,bshd->bthd", weights, values), z


def _backward(queries, keys, values, *rest, scale, **options):
  """The backward pass as flash attention has it, from z and the outputs."""
  *empty, z, outputs, cotangent = rest
  assert len(empty) == 7 and not any(x.size for x in empty)
  assert options.pop("variadic_args") == (False, False)
  assert options.pop("dropout_rate") == 0 and options.pop("score_mod") is None
  assert options.pop("layout") == "BTNH" and options.pop("seed") is not None
  scores = _scores(queries, keys, scale, **options)
  weights = jnp.exp(scores - z[..., None])
  of_weights = jnp.einsum("bthd,bshd->bhts", cotangent, values)
  along = jnp.einsum("bthd,bthd->bht", cotangent, outputs)
  of_scores = scale * weights * (of_weights - along[..., None])
  return [
      jnp.einsum("bhts,bshd->bthd", of_scores, keys),
      jnp.einsum("bhts,bthd->bshd", of_scores, queries),
      jnp.einsum("bhts,bthd->bshd", weights, cotangent),
  ]


def _rule(score_mod):
  del score_mod


# What `cudnn` takes of JAX, in plain JAX.
_PLAIN = types.SimpleNamespace(
    MaskType=_MASKS,
    AttentionLayout=types.SimpleNamespace(
        BTNH=types.SimpleNamespace(value="BTNH")
    ),
    dot_product_attention=_forward,
    _dot_product_attention_bwd_rule=_rule,
    _dot_product_attention_bwd_p_wrapper=types.SimpleNamespace(bind=_backward),
    cuda_versions=object(),
)


class AttendTest(parameterized.TestCase):

  @parameterized.named_parameters(
      # length, prefix, window, parts
      ("window_and_prefix", 30, 3, 8, 1),
      ("no_prefix", 20, 0, 20, 1),
      ("segment", 16, 5, 16, 2),
  )
  def test_equals_plain_attention(self, length, prefix, window, parts):
    arguments, cotangent = splash_test.make_arguments(
        length, length, prefix, 8, parts
    )

    run = functools.partial(
        splash_test.values_and_gradients, arguments, cotangent, window=window
    )
    plain = run(attention.attend_causally)
    with mock.patch.object(cudnn, "_fused", _PLAIN):
      actual = run(cudnn.attend)
    for x, expected in zip(actual, plain, strict=True):
      np.testing.assert_allclose(x, expected, atol=1e-5)


class WhyNotTest(parameterized.TestCase):

  @parameterized.parameters(
      ({}, None),
      ({"dtype": jnp.float32}, "16 bits, not of float32"),
      ({"head_dim": 12}, "up to 128, not 12"),
      ({"head_dim": 256}, "up to 128, not 256"),
      ({"history": 4}, "no room for keys in front"),
      ({"positions": True}, "no documents"),
      ({"kind": None}, "not traced for an NVIDIA GPU"),
      ({"capability": "7.5"}, "capability 8.0, this is 7.5"),
      ({"fused": None}, "of the known form"),
      ({"fused": {"cuda_versions": None}}, "not installed"),
  )
  def test_says_what_it_does_not_suit(self, options, message):
    head_dim = options.get("head_dim", 64)
    dtype = options.get("dtype", jnp.bfloat16)
    queries = jnp.zeros((1, 8, 2, head_dim), dtype)
    keys = jnp.zeros((1, 8 + options.get("history", 0), 2, head_dim), dtype)
    fused = options.get("fused", {})
    if fused is not None:
      fused = types.SimpleNamespace(**vars(_PLAIN) | fused)
    kind = options.get("kind", "NVIDIA H200")
    with (
        mock.patch.object(cudnn, "_fused", fused),
        mock.patch.object(tuning, "gpu_kind", lambda: kind),
        mock.patch.object(
            jax,
            "devices",
            lambda: [
                types.SimpleNamespace(
                    compute_capability=options.get("capability", "9.0")
                )
            ],
        ),
    ):
      reason = cudnn.why_not(queries, [(keys, keys)], options.get("positions"))
    if message is None:
      self.assertIsNone(reason)
    else:
      self.assertIn(message, reason)


class KindTest(parameterized.TestCase):

  @parameterized.parameters(
      ("cuda", "NVIDIA H200", "NVIDIA H200"),
      ("cuda", "Tesla T4", "Tesla T4"),
      ("rocm", "AMD Instinct MI300X", None),
      ("gpu", "AMD Instinct MI300X", None),
      ("tpu", "TPU v5p", None),
  )
  def test_of_the_mesh(self, platform, kind, expected):
    device = jax.sharding.AbstractDevice(
        device_kind=kind, num_cores=1, platform=platform
    )
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
      self.assertEqual(tuning.gpu_kind(), expected)

  def test_of_the_default_device(self):
    self.assertIsNone(tuning.gpu_kind())  # A CPU's.
    device = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA L4")
    with mock.patch.object(jax, "devices", lambda: [device]):
      self.assertEqual(tuning.gpu_kind(), "NVIDIA L4")


class BindingTest(absltest.TestCase):

  def test_jax_has_what_is_called(self):
    arguments, cotangent = splash_test.make_arguments(16, 16, 4, 8, 2)

    def both(*arguments):
      attend = functools.partial(cudnn.attend, window=8)
      outputs, gradient = jax.vjp(attend, *arguments)
      return outputs, gradient(outputs)

    arguments = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arguments)
    installed = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    with mock.patch.object(cudnn._fused, "cuda_versions", installed):
      outputs, gradients = jax.eval_shape(both, *arguments)
    self.assertEqual(outputs.shape, cotangent.shape)
    for x, gradient in zip(
        jax.tree.leaves(arguments), jax.tree.leaves(gradients), strict=True
    ):
      self.assertEqual((x.shape, x.dtype), (gradient.shape, gradient.dtype))


class CompiledTest(absent_gpu.TestCase):

  @parameterized.parameters(("transformer", 1), ("mag", 2), ("mac", 3))
  def test_a_model_takes_it(self, variant, kernels):
    config = presets.tiny(
        variant,
        num_layers=1,
        window=16,
        dtype="bfloat16",
        num_persistent=0 if variant == "transformer" else 8,
    )
    model = language_model.TitansLM(config)
    tokens = jax.ShapeDtypeStruct((2, 32), jnp.int32)

    def loss(variables, tokens):
      return jnp.sum(model.apply(variables, tokens)[0].astype(jnp.float32))

    with jax.enable_x64(False):
      variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
      # Two of them: every one attends for its rows.
      with _aot_gpu.tracing_for("h200", "1x2") as sharding:
        rows = sharding.update(spec=jax.sharding.PartitionSpec("data"))
        jitted = jax.jit(jax.grad(loss), in_shardings=(sharding, rows))
        text = jitted.lower(variables, tokens).compile().as_text()
    calls = re.findall(r'custom_call_target="__cudnn.fmha(\w+)"', text)
    # MAC recomputes its segments.
    self.assertIn(calls.count("Softmax"), (kernels, 2 * kernels))
    self.assertEqual(calls.count("SoftmaxBackward"), kernels)


if __name__ == "__main__":
  absltest.main()
