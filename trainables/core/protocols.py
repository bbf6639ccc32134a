"""The protocols of few-shot evaluation. Imports nothing that takes long to load."""

from __future__ import annotations

from typing import Literal

Protocol = Literal["few-shot", "base-to-new", "domain-generalization", "cross-dataset"]
"""What a sweep trains on, and what its evaluation tests.

`few-shot`: every data set, on its own test split. `base-to-new`: the first half of the classes,
then the test images of both halves, each among its own classes. `domain-generalization`: one data
set, then its shifts, on which nothing is trained. `cross-dataset`: the first data set, then the
others.
"""

Part = Literal["test", "base", "new", "shift", "target"]
"""Which test images a score is about: a whole test split, one half of its classes among themselves,
or a data set that nothing was trained on (`shift`: other images of the same classes)."""

Validation = Literal["held-out", "pooled", "folds"]
"""Labelled images that the models of a trial are validated on.

`held-out`: the validation images of each draw. `pooled`: all labelled images of all draws of
the search, except those that the model was trained on. `folds`: the training images of the draw,
each by a model that was trained without it.
"""

Objective = Literal["accuracy", "likelihood"]
"""What trials are ranked by, both in [0, 1], on their validation images: `accuracy`, or
`likelihood`, the geometric mean of the probability of the true class at the best temperature."""
