"""Methods, data, backbones and trainers."""

import gc
import sys

if sys.argv[:1] and sys.argv[0].endswith("default_worker.py"):
    # A worker of Ray. Garbage collection takes a quarter of the time of its imports and finds
    # nothing; what is imported stays, so that later collections need not look at it either.
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
