# SPDX-License-Identifier: Apache-2.0
"""The tiny TDC: the full model at a width that two CPU cores can train, on clips of ``tiny.world``.

``python -m tiny.recipe`` runs the whole recipe from a seed: vision towers and audio encoder on
labels, then connector, compressor and language model one by one, then the paper's three stages.
docs/tiny.md describes the result, tiny/LOG.md the experiments behind it.
"""
