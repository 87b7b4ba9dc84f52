# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The console scripts, their help, and what a shell completes."""

import pathlib
import subprocess
import sys

from absl.testing import absltest

from experiments import _console
from experiments import completion
from tests.experiments import processes


def script(name, *args):
  """Runs a console script of the environment, outside the checkout."""
  path = pathlib.Path(sys.executable).parent / name
  return subprocess.run(
      [path, *args],
      capture_output=True,
      cwd="/",
      encoding="utf-8",
      timeout=120,
      check=False,
  )


class ConsoleTest(absltest.TestCase):

  def test_lists_what_there_is(self):
    process = script("titans")
    self.assertEqual(process.returncode, 0, process.stderr)
    for name in _console.names():
      self.assertIn(f"  {name} ", process.stdout)
      self.assertIn(_console.summary(name), process.stdout)
      self.assertTrue(_console.summary(name).endswith((".", ":")), name)

  def test_names_the_nearest(self):
    process = script("titans", "evalute", "--text=x")
    processes.assert_refused(self, process, "Did you mean evaluate?")

  def test_flags_stand_behind_the_name(self):
    processes.assert_refused(
        self, script("titans", "--workdir=x", "pretrain"), "behind the name"
    )

  def test_help_has_text_and_flags(self):
    process = script("titans-pretrain", "--help")
    for part in ("Pretrains a language model", "--config:", "--workdir:"):
      self.assertIn(part, process.stdout)
    self.assertNotIn("grain", process.stdout)

  def test_every_flag_is_explained(self):
    for name in _console.names():
      found = completion.flags_of(name)
      # Short: what one look takes in.
      self.assertLess(len(found), 25, name)
      for flag in found:
        self.assertRegex(flag.help, r"\S{3}", f"{name} --{flag.name}")


class CompletionTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.path = processes.folder(cls) / "completion"
    process = processes.run("completion")
    assert process.returncode == 0, process.stderr
    cls.path.write_text(process.stdout)

  def complete(self, *words):
    """Returns what bash makes of words, the last of which is not whole."""
    program = f"""
        source {self.path}
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _titans "$1"
        [[ $COMPREPLY ]] && printf '%s\\n' "${{COMPREPLY[@]}}"; true
    """
    process = subprocess.run(
        ["bash", "-c", program, "bash", *words],
        capture_output=True,
        cwd=processes.ROOT,
        encoding="utf-8",
        check=True,
    )
    return process.stdout.splitlines()

  def test_completes_names_flags_fields_and_files(self):
    self.assertEqual(
        self.complete("titans", "pre"), ["prepare_data", "pretrain"]
    )
    self.assertEqual(self.complete("titans", "niah", "--dep"), ["--depths="])
    # Flags that experiments share
    self.assertEqual(
        self.complete("titans", "babilong", "--workd"), ["--workdir="]
    )
    self.assertEqual(
        self.complete("/bin/titans-pretrain", "--config.model.var"),
        ["--config.model.variant="],
    )
    self.assertEqual(
        self.complete("titans-inspect", "--text", "=", "setup."), ["setup.cfg"]
    )
    self.assertEqual(
        self.complete("titans", "stream", "--no"), ["--noupdate_memory"]
    )
    self.assertEqual(self.complete("titans", "stream", "--nothing"), [])
    # As zsh has the words, which does not cut them at the sign; a folder
    self.assertEqual(
        self.complete("titans", "stream", "--input=docs/note"),
        ["--input=docs/notebooks/"],
    )
    (self.path.parent / "two words").touch()
    self.assertEqual(
        self.complete("titans-inspect", "--text", "=", f"{self.path.parent}/t"),
        [f"{self.path.parent}/two words"],
    )


if __name__ == "__main__":
  absltest.main()
