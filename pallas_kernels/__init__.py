# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pallas kernels: a scan whose carry stays in on-chip memory."""

from pallas_kernels.api import fused_scan
from pallas_kernels.api import why_not
from pallas_kernels.tuning import GENERATIONS

__all__ = ("GENERATIONS", "fused_scan", "why_not")
