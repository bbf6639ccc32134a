"""Which backbone takes the place of which, and what makes numbers comparable."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.reproduction.plan import backbone_difference, chosen_backbones

TABLE = ("RN50", "ViT-B-16")


def test_without_a_choice_the_published_weights_are_used() -> None:
    assert chosen_backbones(TABLE, ()) == (
        {"RN50": "RN50:openai", "ViT-B-16": "ViT-B-16:openai"},
        {},
    )


def test_a_backbone_takes_the_place_of_its_architecture() -> None:
    found, left_out = chosen_backbones(TABLE, ("RN50-quickgelu:w.pt",))
    assert found == {"RN50": "RN50-quickgelu:w.pt"}
    assert left_out == {"ViT-B-16": "not among --backbone"}


def test_other_architectures_are_used_as_they_are() -> None:
    assert chosen_backbones(TABLE, ("ViT-L-14:openai",)) == (
        {"ViT-L-14:openai": "ViT-L-14:openai"},
        {},
    )


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("RN50:openai", ""),
        ("RN50", ""),
        ("RN50-quickgelu:openai", ""),
        ("RN50:yfcc15m", "other weights (yfcc15m)"),
        ("ViT-L-14:openai", "another backbone (ViT-L-14:openai)"),
    ],
)
def test_only_the_same_architecture_and_weights_are_comparable(spec: str, why: str) -> None:
    assert backbone_difference("RN50", spec) == why


def test_a_local_file_is_verified_by_its_digest(tmp_path: Path) -> None:
    file = tmp_path / "RN50.pt"
    file.write_bytes(b"not OpenAI's")
    assert backbone_difference("RN50", f"RN50:{file}") == "weights not verified"
    assert backbone_difference("RN50", f"RN50:openai@{file}") == "weights not verified"
