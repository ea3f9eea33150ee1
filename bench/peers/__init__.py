# SPDX-License-Identifier: Apache-2.0
"""Other ways of computing the same thing, re-stated in our own words to be measured against."""
