# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The documentation site. Built with warnings as errors, and without network:

python -m sphinx -W --keep-going -b html docs docs/_build
"""

import importlib.metadata
import os
import re

project = "titans_jax"
author = "The titans_jax Authors"
copyright = "2026, The titans_jax Authors"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]

html_theme = "sphinx_book_theme"
html_title = "titans_jax"
html_theme_options = {"show_navbar_depth": 2}

# Pages are MyST Markdown; headings can be linked to by their text.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Notebooks are stored without outputs and run by every build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
# Nothing that a build writes goes beside the sources.
nb_execution_in_temp = True
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Their programs are tiny, run a few times, and take long to compile well.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
  os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
# An `Attributes:` section says what a field is: its own entry has no more.
napoleon_use_ivar = True
napoleon_numpy_docstring = False
# A name in single quotes of this kind is code, as in Markdown.
default_role = "code"


def _escape_mathematics(app, what, name, obj, options, lines):
  """Keeps norms |x|, leaves [*axes, ...] and a letter by itself ("B.", which
  could number a list) from being taken for markup."""
  del app, what, name, obj, options
  markup = r"\||(?<=\[)\*|(?<=: )[A-Za-z]\.$"
  lines[:] = [re.sub(markup, r"\\\g<0>", line) for line in lines]


def _hide_flax_fields(app, what, name, obj, options, signature, result):
  """Leaves out what Flax adds to every module's signature."""
  del app, what, name, obj, options
  if signature is None:
    return None
  return re.sub(r"(, )?parent=<.*?>, name=None", "", signature), result


def setup(app):
  """Connects the above to Sphinx."""
  # Behind napoleon, which has made fields of the sections.
  app.connect("autodoc-process-docstring", _escape_mathematics, priority=900)
  app.connect("autodoc-process-signature", _hide_flax_fields)
