# SPDX-License-Identifier: Apache-2.0
"""Measurements: one module per comparison, run as ``python -m bench.<name>``."""
