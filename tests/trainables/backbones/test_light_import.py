"""A worker imports timm, transformers and all of torchvision only for models that need them, and
torch's compiler, a second of imports, never: an optimiser of torch alone would."""

from __future__ import annotations

import subprocess
import sys

_LIGHT = """
import sys
from spaces.registry import SPACES
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.methods.base import TaskFacts
from trainables.trainer import Trainer
from trainables.trial import Episode
task = EncodedTask("tiny", "cpu", DataSource())
for space in ("taskres", "linear-probe"):
    config = SPACES[space].build(TaskFacts("digits", 1, 10, "vit")).paper
    trainer = Trainer(config, task, Episode("digits", 1, 1))
    if trainer.epochs:
        trainer.run_epoch()
    trainer.logits(trainer.val)
print(*(n for n in ("timm", "transformers", "torch._dynamo", "torchvision") if n in sys.modules))
"""
_LATER = """
from trainables.backbones.open_clip import TimmModel, construct
vision = {"timm_model_name": "resnet18", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
assert isinstance(construct(config, "timm").visual, TimmModel)
import transformers, torchvision
from torchvision.ops import MLP
print("ok")
"""


def test_training_the_embedded_model_needs_none_of_them_and_they_can_be_used_afterwards() -> None:
    code = _LIGHT + _LATER
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["", "ok"]
