# SPDX-License-Identifier: Apache-2.0
"""The tiny TDC: the same classes at a width that two CPU cores train, on clips of ``tiny.world``.

``python -m tiny.recipe`` runs the whole recipe from a seed: image towers and sound encoder on
labels, connector, compressor and language model one by one, then the paper's three stages
(docs/tiny.md).
"""
