# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretraining: configuration, step, loop, checkpoints and metrics."""
