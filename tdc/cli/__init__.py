# SPDX-License-Identifier: Apache-2.0
"""The subcommands of ``tdc``, one file each.

A file has ``add(subparsers)``, which declares the arguments and imports nothing heavy, and
``run(arguments)``, which imports what it needs.
"""
