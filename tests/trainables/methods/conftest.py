"""The embedded backbone, for all tests of methods."""

import pytest

from trainables.backbones.base import Backbone
from trainables.load_backbone import load_backbone


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """On the CPU. Tests must not change it."""
    return load_backbone("tiny")
