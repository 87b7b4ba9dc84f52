# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is saved comes back. (How it is saved, tests/experiments/pretrain_test.)"""

import contextlib
import pathlib

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

import titans_jax as titans
from titans_jax.training import checkpoints
from titans_jax.training import config as config_lib
from titans_jax.training import optimizer as optimizer_lib
from titans_jax.training import step as step_lib


class CheckpointsTest(absltest.TestCase):

  def test_no_persistent_tokens(self):
    # Orbax saves no array of size zero: neither parameters nor carried states
    # may have to.
    config = titans.presets.tiny(
        variant="transformer", num_layers=1, num_persistent=0
    )
    run = config_lib.RunConfig(model=config)
    model = titans.TitansLM(config)
    optimizer = optimizer_lib.make_optimizer(config_lib.OptimizerConfig(), 10)
    state = jax.jit(lambda: step_lib.init_state(model, optimizer, 0, 2))()
    state = state._replace(step=jnp.int32(3))
    self.assertTrue(any(x.size == 0 for x in jax.tree.leaves(state)))
    folder = pathlib.Path(self.create_tempdir().full_path) / "checkpoints"
    with contextlib.closing(checkpoints.Checkpoints(folder, keep=1)) as manager:
      manager.save(state, {}, run.to_dict())
      manager.wait()
      restored = manager.restore(state, run)
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)


if __name__ == "__main__":
  absltest.main()
