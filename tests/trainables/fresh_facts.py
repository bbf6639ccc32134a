"""What must be the same in every process: draws, fingerprints, a short training.

`python -m tests.trainables.fresh_facts` prints it as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import torch

from tests.trainables.trials import mask_trial, residual_trial
from trainables.data.few_shot import sample_shots
from trainables.data.registry import DataSource, open_dataset
from trainables.encoded_task import EncodedTask
from trainables.trainer import Trainer
from trainables.trial import Episode


def facts() -> dict[str, Any]:
    """Plain JSON."""
    labels = torch.arange(7).repeat(9)
    splits = [
        open_dataset(name).split(split)
        for name in ("digits", "digits-rotated")
        for split in ("train", "val")
    ]
    encoded_task = EncodedTask("tiny", "cpu", DataSource())
    trainer = Trainer(mask_trial(), encoded_task, Episode("digits", 1, 1))
    metrics = trainer.run_epoch()
    digest = hashlib.sha256()
    for tensor in trainer.state()[0].values():
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        "draw": list(sample_shots(labels, 3, seed=5, fingerprint="f").values()),
        "splits": [split.fingerprint for split in splits],
        "trial": [residual_trial().fingerprint(), mask_trial().fingerprint()],
        "metrics": metrics,
        "state": digest.hexdigest(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(99)
    torch.rand(17)
    json.dump(facts(), sys.stdout)
