# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
