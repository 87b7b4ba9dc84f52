# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The launch scripts: what they print, and that arguments arrive whole."""

import os
import subprocess

from absl.testing import absltest
from absl.testing import parameterized

from tests.experiments import processes

_ARGUMENTS = ("--config=a.py", "--prompt=it's $HOME  here")

# Script, its own arguments, the launcher, and what of that one's options is a
# command for a shell.
_SCRIPTS = (
    ("tpu_pod", ("pod", "us-east5-a", "."), "gcloud", "--command="),
    ("gke", ("c", "z", "v5p-128", "1", "image", "name"), "xpk", "--command="),
    ("slurm", ("2", "8"), "sbatch", "--wrap="),
)


class LaunchTest(parameterized.TestCase):

  def launch(self, script, *args, path=None):
    return subprocess.run(
        ["sh", str(processes.ROOT / f"experiments/launch/{script}.sh"), *args],
        capture_output=True,
        encoding="utf-8",
        check=False,
        cwd=path,
        env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"},
    )

  @parameterized.parameters(*_SCRIPTS)
  def test_arguments_arrive(self, script, own, launcher, option):
    # Given launchers that run here what they are told to run elsewhere
    folder = processes.folder(self)
    (folder / ".venv/bin").mkdir(parents=True)
    shims = {
        launcher: (
            f'for a in "$@"; do case "$a" in {option}*)'
            f' exec sh -c "${{a#{option}}}";; esac; done'
        ),
        "srun": 'exec "$@"',
        "python3": 'printf "<%s>" "$@"',
        ".venv/bin/python": 'printf "<%s>" "$@"',
    }
    for name, body in shims.items():
      (folder / name).write_text(f"#!/bin/sh\n{body}\n")
      (folder / name).chmod(0o755)
    process = self.launch(script, *own, *_ARGUMENTS, path=folder)
    self.assertEqual(process.returncode, 0, process.stderr)
    arrived = "".join(f"<{a}>" for a in ("-m", "experiments.pretrain"))
    arrived += "".join(f"<{a}>" for a in _ARGUMENTS)
    self.assertIn(arrived, process.stdout)
    # And a dry run prints the launcher's command and runs nothing
    dry = self.launch(script, "--dry_run", *own, *_ARGUMENTS, path=folder)
    self.assertEqual(dry.returncode, 0)
    self.assertStartsWith(dry.stdout, launcher)
    self.assertNotIn(arrived, dry.stdout)

  @parameterized.parameters("tpu_pod", "gke", "slurm")
  def test_too_few_arguments(self, script):
    process = self.launch(script, "--dry_run", "one")
    self.assertEqual(process.returncode, 2)
    self.assertIn(f"experiments/launch/{script}.sh [--dry_run]", process.stderr)


if __name__ == "__main__":
  absltest.main()
