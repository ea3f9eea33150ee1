# SPDX-License-Identifier: Apache-2.0
from train_samples import media_dir, model_dir  # noqa: F401  (fixtures)
