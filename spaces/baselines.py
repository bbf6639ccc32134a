"""Rivals that read frozen features: what is worth varying in each, as tables.

The intervals hold the grids that the authors search, where they search one.
"""

from __future__ import annotations

from collections.abc import Mapping

from spaces.declared import CROPS, Categorical, Float, Int, Range

BASELINES: Mapping[str, Mapping[str, Range]] = {
    # CLIP sweeps C from 1e-6 to 1e6.
    "linear-probe": {"inverse_penalty": Float(1e-6, 1e6, log=True), **CROPS},
    "clip-adapter": {
        "ratio": Float(0.05, 1.0),
        "reduction": Categorical((2, 4, 8, 16)),
        "lr": Float(1e-5, 1e-2, log=True),
        "epochs": Int(25, 200),
        **CROPS,
    },
    # The authors' grids end between 3 and 50, differently for each data set.
    "tip-adapter": {
        "alpha": Float(0.1, 50.0, log=True),
        "beta": Float(0.1, 50.0, log=True),
        **CROPS,
    },
    "tip-adapter-f": {
        "alpha": Float(0.1, 50.0, log=True),
        "beta": Float(0.1, 50.0, log=True),
        "lr": Float(1e-4, 1e-2, log=True),
        "weight_decay": Float(1e-4, 1e-1, log=True),
        "epochs": Int(10, 100),
        **CROPS,
    },
    "cross-modal": {
        "text_share": Float(0.0, 0.8),
        "lr": Float(1e-5, 1e-2, log=True),
        "weight_decay": Float(1e-4, 1e-1, log=True),
        "batch_size": Categorical((4, 16, 64)),
        "epochs": Int(25, 300),
        **CROPS,
    },
    "lp-plus-plus": {
        "iterations": Int(30, 1000, log=True),
        "step": Float(0.1, 4.0, log=True),
        "start_alpha": Float(10.0, 1000.0, log=True),
        "inertia": Categorical((0.0, 0.9)),
        **CROPS,
    },
    "clap": {
        "penalty": Float(1e-2, 1e2, log=True),
        "per_class": Categorical((True, False)),
        "lr": Float(1e-3, 1.0, log=True),
        "epochs": Int(50, 300),
        **CROPS,
    },
    "gda": {
        "alpha": Float(1e-4, 1e2, log=True),
        "shrinkage": Float(1e-2, 1e1, log=True),
        **CROPS,
    },
}
"""Method -> field -> what it may be. Each space is named after its method."""
