# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Programs compiled for GPUs that are not there (compiler, not measurement)."""

from absl.testing import parameterized
import jax

from pallas_kernels import _aot_gpu


class TestCase(parameterized.TestCase):
  """Skips, with the reason, where nothing can be compiled for GPUs."""

  def setUp(self):
    super().setUp()
    reason = _aot_gpu.why_not()
    if reason is not None:
      self.skipTest(reason)
    # What was compiled for absent devices cannot be read back.
    option = "jax_persistent_cache_min_compile_time_secs"
    self.addCleanup(jax.config.update, option, getattr(jax.config, option))
    jax.config.update(option, float("inf"))
