# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The project's files agree with the tree, and imports point one way."""

import ast
import configparser
import glob
import pathlib
import re
import sys
import types

from absl.testing import absltest

ROOT = pathlib.Path(__file__).parent.parent

# Where a package's name on the index is not that of its module.
_DISTRIBUTIONS = {
    "absl": "absl_py",
    "orbax": "orbax_checkpoint",
    "tensorboardX": "tensorboardx",
}

# What each may import of the project, besides `files` and `tokenizers`.
# experiments -> ... -> memory. The kernels' package knows nothing of these but the
# memory, in its tools; any may import it.
_BELOW = {
    "memory": set(),
    "layers": {"memory"},
    "models": {"layers", "memory"},
    "data": set(),
    "parallel": {"layers", "memory", "models"},
    "training": {"data", "layers", "memory", "models", "parallel"},
    "inference": {"layers", "memory", "models"},
    "evaluation": {
        "data",
        "inference",
        "layers",
        "memory",
        "models",
        "parallel",
        "training",
    },
}
_BESIDE = ("files", "tokenizers")


def sources():
  for folder in ("titans_jax", "pallas_kernels", "experiments", "tests"):
    yield from sorted((ROOT / folder).rglob("*.py"))


def imports(path):
  """Returns the dotted names that a file imports from outside its package."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and not node.level:
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def targets():
  """Runs BUILD with its rules as recorders and returns {name: arguments}."""
  found = {}

  def record(name, **kwargs):
    found[name] = types.SimpleNamespace(
        srcs=kwargs["srcs"], deps=kwargs.get("deps", [])
    )

  def find(patterns, exclude=()):
    def match(patterns):
      return {
          path
          for pattern in patterns
          for path in glob.glob(pattern, root_dir=ROOT, recursive=True)
      }

    return sorted(match(patterns) - match(exclude))

  names = {rule: record for rule in ("py_library", "py_binary", "py_test")}
  names["glob"] = find
  for ignored in ("load", "package", "licenses", "exports_files"):
    names[ignored] = lambda *args, **kwargs: None
  exec((ROOT / "BUILD").read_text(), names)  # pylint: disable=exec-used
  return found


class ProjectTest(absltest.TestCase):

  def test_build_holds_every_file(self):
    listed = {src for target in targets().values() for src in target.srcs}
    on_disk = {str(path.relative_to(ROOT)) for path in sources()}
    self.assertEqual(listed, on_disk)

  def test_build_names_the_imports(self):
    libraries = {
        name: target
        for name, target in targets().items()
        if name in _BELOW
        or name in _BESIDE
        or name in ("experiments", "nnx")
        or name.startswith("pallas_kernels")
    }
    self.assertLen(libraries, len(_BELOW) + len(_BESIDE) + 4)
    for name, target in libraries.items():
      expected = set()
      for src in target.srcs:
        for module in imports(ROOT / src):
          top, _, rest = module.partition(".")
          if top == "titans_jax":
            expected.add(f":{rest.partition('.')[0]}")
          elif top == "pallas_kernels":
            # A target's own files are not deps.
            expected.add(self._kernel_target(rest.partition(".")[0]))
          elif top not in sys.stdlib_module_names:
            expected.add(f"@pypi//{_DISTRIBUTIONS.get(top, top)}")
      self.assertEqual(set(target.deps), expected - {f":{name}"}, name)

  def _kernel_target(self, module):
    tools = targets()["pallas_kernels_tools"].srcs
    if f"pallas_kernels/{module}.py" in tools:
      return ":pallas_kernels_tools"
    return ":pallas_kernels"

  def test_imports_point_one_way(self):
    for path in targets()["pallas_kernels"].srcs:
      for module in imports(ROOT / path):
        self.assertNotIn(module.split(".")[0], ("titans_jax", "experiments"))
    for path in sources():
      parts = path.relative_to(ROOT).parts
      if parts[0] != "titans_jax" or len(parts) < 3:
        continue
      for module in imports(path):
        if module.startswith("titans_jax."):
          other = module.split(".")[1]
          self.assertIn(other, _BELOW[parts[1]] | {parts[1], *_BESIDE}, path)
        self.assertNotIn(module.split(".")[0], ("experiments", "tests"), path)

  def test_wheel_holds_every_package(self):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = set(setup["options"]["packages"].split())
    on_disk = {
        ".".join(path.relative_to(ROOT).parent.parts)
        for folder in ("titans_jax", "pallas_kernels", "experiments")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    mapped = {
        f"titans_jax.{name}" if name.startswith("experiments") else name
        for name in on_disk
    }
    self.assertEqual(packages, mapped)

  def test_images_install_what_there_is(self):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    for chip in ("cuda13", "tpu"):
      name = {"cuda13": "gpu"}.get(chip, chip)
      image = (ROOT / "docker" / f"{name}.Dockerfile").read_text()
      (jax,) = re.findall(r"pip install '(jax\[.*?)'", image)
      self.assertEqual(jax, extras[chip].strip())
      (named,) = re.findall(r"'/src\[(.*?)\]'", image)
      self.assertContainsSubset(named.split(","), extras)
      self.assertIn(chip, named)
      (script,) = re.findall(r'ENTRYPOINT \["(.*)"\]', image)
      scripts = setup["options.entry_points"]["console_scripts"]
      self.assertIn(f"{script} =", scripts)
      # What the build is given is enough for the wheel.
      kept = (ROOT / ".dockerignore").read_text()
      for package in setup["options"]["packages"].split():
        folder = package.replace("titans_jax.experiments", "experiments")
        self.assertIn(f"!{folder.partition('.')[0]}\n", kept)

  def test_every_file_has_its_licence_and_docstring(self):
    for path in (*sources(), ROOT / "docs/conf.py"):
      text = path.read_text()
      self.assertRegex(
          text,
          r"\A# Copyright 2026 The titans_jax Authors\.\n"
          r"# SPDX-License-Identifier: Apache-2\.0\n",
          path,
      )
      if path.name != "__init__.py" or path.is_relative_to(ROOT / "titans_jax"):
        self.assertTrue(ast.get_docstring(ast.parse(text)), path)
