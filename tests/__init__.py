# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0

import importlib.metadata

# Compiling dominates: the tests' programs are tiny and run once or twice.
QUICK_COMPILES = (
    "--xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
  # A third less to compile; later ones have no such option.
  QUICK_COMPILES += " --xla_cpu_use_fusion_emitters=false"
