# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed and used outside the repository."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile

from absl.testing import absltest
import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
class WheelTest(absltest.TestCase):

  def test_builds_installs_and_runs(self):
    if importlib.util.find_spec("build") is None:
      self.skipTest("`build` is not installed (extra dev).")
    folder = pathlib.Path(self.create_tempdir().full_path)

    def run(*command):
      process = subprocess.run(
          list(map(str, command)),
          capture_output=True,
          cwd=folder,
          encoding="utf-8",
          timeout=300,
          check=False,
      )
      self.assertEqual(process.returncode, 0, process.stderr[-2000:])
      return process.stdout

    # Given the wheel of the source distribution, from a copy that builds leave
    # their files in
    source = folder / "source"
    kept = ("titans_jax", "pallas_kernels", "experiments")
    shutil.copytree(
        ROOT,
        source,
        ignore=lambda path, names: [
            name
            for name in names
            if name == "__pycache__"
            or pathlib.Path(path) == ROOT
            and (ROOT / name).is_dir()
            and name not in kept
        ],
    )
    run(
        sys.executable, "-m", "build", "--no-isolation", "-o", folder / "dist",
        source,
    )  # fmt: skip
    self.assertLen(list((folder / "dist").glob("*.tar.gz")), 1)
    (wheel,) = (folder / "dist").glob("*.whl")
    # In an environment that has what it depends on, and nothing else of ours
    run(sys.executable, "-m", "venv", folder / "venv")
    binaries = folder / "venv" / "bin"
    run(binaries / "pip", "install", "-q", "--no-deps", wheel)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "venv" / "lib" / version / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    # It is this wheel that runs
    where = run(
        binaries / "python",
        "-c",
        "import titans_jax, pallas_kernels, titans_jax.experiments.configs;"
        " print(titans_jax.__file__)",
    )
    self.assertTrue(pathlib.Path(where.strip()).is_relative_to(site), where)
    help_text = subprocess.run(
        [binaries / "titans-pretrain", "--help"],
        capture_output=True,
        cwd=folder,
        encoding="utf-8",
        check=False,
    ).stdout
    self.assertIn("Pretrains a language model", help_text)
    self.assertIn("site-packages/titans_jax/experiments", help_text)
    self.assertIn("inspect_checkpoint", run(binaries / "titans"))
    # And leaves no package of a general name behind
    for name in ("experiments", "tests"):
      self.assertFalse((site / name).exists(), name)
    workdir = tempfile.mkdtemp(dir=folder)
    run(
        binaries / "titans",
        "pretrain",
        f"--workdir={workdir}",
        "--config.model.variant=lmm",
        "--config.model.num_layers=1",
        "--config.model.model_dim=16",
        "--config.data.sequence_length=64",
        "--config.data.max_heldout_sequences=4",
        "--config.train.num_steps=2",
        "--config.optimizer.warmup_steps=1",
        "--sample_tokens=0",
    )
    self.assertIn("lmm", run(
        binaries / "titans-inspect", f"--checkpoint={workdir}"
    ))  # fmt: skip


if __name__ == "__main__":
  absltest.main()
