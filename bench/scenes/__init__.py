# SPDX-License-Identifier: Apache-2.0
"""How well cuts of real footage are found, by what, and at what cost (docs/segmentation.md).

The footage is not part of the repository. ``shots.csv`` names every shot: a file, the public
repository or package that carries it, seconds without a cut inside (looked through by eye), and its
half. ``edited.json`` names a music video and its cuts: those that both detectors of PySceneDetect
report, each looked at. Copy the files into one folder, then::

    python -m bench.scenes.splice FOOTAGE CLIPS
    python -m bench.scenes.evaluate CLIPS            # one row for everything that is installed

The halves share no file but the music video: ``train`` has its first part, ``test`` the second.
``train`` set the threshold and the design of the features, ``test`` gives the figures of the
document.
"""
