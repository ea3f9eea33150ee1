# SPDX-License-Identifier: Apache-2.0
"""One folder per op: ``__init__.py`` is contract and checks, the other files are backends."""
