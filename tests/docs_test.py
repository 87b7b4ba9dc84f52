# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the documentation says is so: code runs, commands parse, names exist."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

import tests

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md",
        ROOT / "pallas_kernels/README.md",
        *(ROOT / "docs").rglob("*.md"),
    )
    if "_build" not in path.parts
)
SITE = ("sphinx", "myst_nb", "sphinx_book_theme", "ipykernel")


def blocks(page, language):
  """Returns the code blocks of a page in a language."""
  text = (ROOT / page).read_text()
  return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.M)


def commands(page):
  """Returns the command lines of a page that run a program of this project."""
  text = (ROOT / page).read_text()
  lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
  # Within a line: a program with arguments. Alone it is only named.
  lines += re.findall(r"`([^`\n]*python -m [\w.]+ [^`\n]*)`", text)
  # A shell's variables stand for anything; 0 is legal wherever one is used.
  parts = (
      re.sub(r"\$\w+", "0", part).strip(" &")
      for line in lines
      for part in line.split(" && ")
  )
  program = r"(\S*/)?python -m (experiments|pallas_kernels)\.\w"
  return [part for part in parts if re.match(program, part)]


def problems(lines):
  """Returns what is wrong with each command line."""
  answers = subprocess.run(
      [sys.executable, "-m", "tests.docs_flags"],
      input="\n".join(lines),
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      text=True,
      check=True,
  ).stdout.splitlines()
  return dict(zip(lines, map(json.loads, answers), strict=True))


def exists(name):
  """Returns whether a dotted name is that of a module, or of something in one."""
  parts = name.split(".")
  if parts[0] == "experiments":
    # Not imported: programs define flags of the same names.
    return importlib.util.find_spec(name) is not None
  for end in range(len(parts), 0, -1):
    module = ".".join(parts[:end])
    try:
      found = importlib.import_module(module)
    except ModuleNotFoundError:
      continue
    for part in parts[end:]:
      fields = ()
      if dataclasses.is_dataclass(found):
        fields = [field.name for field in dataclasses.fields(found)]
      if part in fields:
        return part == parts[-1]
      if not hasattr(found, part):
        return False
      found = getattr(found, part)
    return True
  return False


class CodeTest(parameterized.TestCase):

  @parameterized.parameters(
      page for page in PAGES if page != "README.md" and blocks(page, "python")
  )
  def test_code_of_page_runs(self, page):
    names = {}
    for block in blocks(page, "python"):
      exec(block, names)  # pylint: disable=exec-used

  def test_code_of_readme_runs(self):
    (example,) = blocks("README.md", "python")
    names = {}
    exec(example, names)  # pylint: disable=exec-used
    self.assertEqual(names["y"].shape, names["x"].shape)
    self.assertEqual(names["new"].shape, (2, 8))


class CommandsTest(absltest.TestCase):

  def test_every_command_has_flags_that_its_program_knows(self):
    lines = [line for page in PAGES for line in commands(page)]
    named = set(re.findall(r"-m (\w+)\.", " ".join(lines)))
    self.assertEqual(named, {"experiments", "pallas_kernels"})
    wrong = [
        "python -m experiments.generate --checkpoint=runs/x --promt=Once",
        "python -m experiments.pretrain --workdir=x --config.model.varant=mag",
        "python -m experiments.pretrain --workdir=x --config.seed=many",
        "python -m experiments.niah --haystack=x.txt",  # without --workdir
        "python -m experiments.pretrain --workdir=x more",
        "python -m experiments.no_such_program",
        "python -m pallas_kernels.benchmark --no_such_flag",
    ]
    found = problems([*lines, *wrong])
    for line in lines:
      self.assertEqual(found[line], "", line)
    for line in wrong:
      self.assertNotEqual(found[line], "", line)


# Programs that a test of their own runs from the command line.
ELSEWHERE = {
    "experiments.plan": "experiments/plan_test.py",
    "experiments.read_data": "experiments/plan_test.py",
    "experiments.recall": "experiments/recall_test.py",
    "experiments.niah": "experiments/asking_test.py",
    "experiments.babilong": "experiments/asking_test.py",
    "experiments.forecast": "experiments/forecast_test.py",
    "experiments.genomics": "experiments/genomics_test.py",
    "experiments.ablations": "experiments/ablations_test.py",
    "experiments.depth": "experiments/depth_test.py",
    "experiments.efficiency": "experiments/efficiency_test.py",
    "pallas_kernels.selfcheck": "pallas_kernels/selfcheck_test.py",
    "pallas_kernels.benchmark": "pallas_kernels/benchmark_test.py",
    "pallas_kernels.schedule": "pallas_kernels/schedule_test.py",
}
# What makes of the others' commands those of seconds.
SHORTER = {
    "experiments.pretrain": (
        "--config.model.num_layers=1",
        "--config.model.model_dim=16",
        "--config.model.ffn_dim=16",
        "--config.data.sequence_length=64",
        "--config.data.batch_size=2",
        "--config.data.max_heldout_sequences=2",
        "--config.train.num_steps=2",
        "--config.optimizer.warmup_steps=1",
        "--sample_tokens=2",
    ),
    "experiments.generate": ("--max_new_tokens=2",),
    "experiments.inspect_checkpoint": ("--max_tokens=20",),
    "experiments.evaluate": ("--batch_size=2",),
}


@pytest.mark.exhaustive
class RunTest(absltest.TestCase):
  """Runs the commands, in the pages' order, shortened."""

  def write_inputs(self, folder):
    """Writes the files that the pages name."""
    tokenizers = importlib.import_module("tokenizers")
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    words = np.random.default_rng(0).choice(["one", "two", "three", "."], 8000)
    text = " ".join(words)
    names = (
        "texts/a.txt",
        "other/b.txt",
        "words/c.txt",
        "book.txt",
        "chapter.txt",
    )
    for name in names:
      path = folder / name
      path.parent.mkdir(exist_ok=True)
      path.write_text(text)
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([text], special_tokens=["<|endoftext|>"])
    for path in (folder / "tokenizer.json", folder / "data/tokenizer.json"):
      path.parent.mkdir(exist_ok=True)
      tokenizer.save(str(path))
    (folder / "fineweb").mkdir()
    table = pyarrow.table({"text": [text] * 3})
    parquet.write_table(table, folder / "fineweb/a.parquet")
    (folder / "experiments").symlink_to(ROOT / "experiments")

  def test_commands_run(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    self.write_inputs(folder)
    pages = sorted(PAGES, key=lambda page: page != "README.md")
    for line in dict.fromkeys(x for page in pages for x in commands(page)):
      words = shlex.split(line, comments=True)
      words = words[words.index("-m") + 1 :]
      if words[0] in ELSEWHERE:
        test = (ROOT / "tests" / ELSEWHERE[words[0]]).read_text()
        name = words[0].split(".")[1]
        self.assertRegex(
            test, rf'(run|run_module|refused)\([^)]*"[\w.]*{name}"'
        )
        continue
      if "--num_processes=2" in words:  # Run by pretrain_test.
        continue
      done = subprocess.run(
          [sys.executable, "-m", *words, *SHORTER.get(words[0], ())],
          cwd=folder,
          env=os.environ
          | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": tests.QUICK_COMPILES},
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          text=True,
          errors="replace",
          timeout=300,
          check=False,
      )
      self.assertEqual(done.returncode, 0, f"{line}\n{done.stdout[-3000:]}")


class NamesTest(parameterized.TestCase):

  @parameterized.parameters(*PAGES)
  def test_names_exist(self, page):
    text = (ROOT / page).read_text()
    name = r"(?:titans_jax|pallas_kernels|experiments)(?:\.\w+)+"
    names = re.findall(rf"`({name})[` ]", text)
    names += re.findall(rf"auto\w+:: ({name})", text)
    for name in names:
      self.assertTrue(exists(name), name)
    for path in re.findall(
        r"(?:experiments/configs|docs)/(?!_build)[\w.]+", text
    ):
      self.assertTrue((ROOT / path).exists(), path)

  def test_paper_page_has_a_name_in_every_row(self):
    text = (ROOT / "docs/paper.md").read_text()
    rows = re.findall(r"^\| (?!---|the paper)(.*) \|$", text, re.M)
    self.assertGreater(len(rows), 30)
    for row in rows:
      self.assertRegex(row.split("|")[-1], r"`\w+(\.\w+)+`")

  def test_what_does_not_exist_is_found(self):
    self.assertTrue(exists("titans_jax.TitansConfig.segment_length"))
    self.assertTrue(exists("titans_jax.NeuralMemory.model_dim"))
    for name in (
        "titans_jax.memory.no_such_function",
        "titans_jax.NeuralMemory.no_such_method",
        "titans_jax.no_such_module.scan",
        "experiments.no_such_program",
    ):
      self.assertFalse(exists(name), name)


@pytest.mark.exhaustive  # minutes, of the notebooks
class SiteTest(absltest.TestCase):

  def test_site_builds_and_notebooks_run(self):
    missing = [name for name in SITE if importlib.util.find_spec(name) is None]
    if missing:
      self.skipTest(f"The extra docs is not installed: no {missing}.")
    notebooks = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
    self.assertLen(notebooks, 3)
    for notebook in notebooks:
      for cell in json.loads(notebook.read_text())["cells"]:
        self.assertFalse(cell.get("outputs"), f"{notebook} has outputs")
    with tempfile.TemporaryDirectory() as folder:
      command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
      done = subprocess.run(
          [*command, "-b", "html", "docs", f"{folder}/site"],
          cwd=ROOT,
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          text=True,
          check=False,
      )
      self.assertEqual(done.returncode, 0, done.stdout[-5000:])
      for notebook in notebooks:
        page = pathlib.Path(folder, "site/notebooks") / f"{notebook.stem}.html"
        self.assertIn("cell_output", page.read_text())


if __name__ == "__main__":
  absltest.main()
