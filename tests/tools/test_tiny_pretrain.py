"""The embedded tiny model: its training data, a short training run, and the shipped files."""

from __future__ import annotations

import ast
import gzip
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tools.tiny import augment, glyphs, pretrain
from trainables.backbones.open_clip import open_clip

SOURCE = Path(pretrain.__file__).parent
SHIPPED = SOURCE.parents[1] / "trainables" / "backbones" / "tiny"
SHORT = pretrain.PretrainConfig(steps=4, batch=16, concepts=8, coloured=3, warmup=2)
FILES = (pretrain.CONFIG_FILE, pretrain.MERGES_FILE, pretrain.WEIGHTS_FILE)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small are slower with more threads, especially on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "made"
    pretrain.pretrain(SHORT, folder, progress=lambda _: None)
    return folder


@pytest.fixture(params=["written", "shipped"])
def folder(request: pytest.FixtureRequest, written: Path) -> Path:
    return written if request.param == "written" else SHIPPED


# The folder, as written by a short run and as shipped.


def test_open_clip_loads_the_folder(folder: Path) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == 1.055
    activations = [m for m in model.modules() if "gelu" in type(m).__name__.lower()]
    assert [type(m) for m in activations] == [nn.GELU] * 6
    red = preprocess(Image.new("RGB", (50, 20), (255, 0, 0)))
    assert red.shape == (3, 32, 32)
    assert red.amin(dim=(1, 2)).tolist() == red.amax(dim=(1, 2)).tolist() == [1, -1, -1]
    saved = load_file(folder / pretrain.WEIGHTS_FILE)
    loaded = model.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], saved[name].float()) for name in saved)


def test_the_folder_is_small_and_half_precision(folder: Path) -> None:
    weights = folder / pretrain.WEIGHTS_FILE
    assert weights.stat().st_size < 2.5e6
    assert {p.dtype for p in load_file(weights).values()} == {torch.float16}
    assert all(p.isfinite().all() for p in load_file(weights).values())
    assert json.loads((folder / pretrain.CONFIG_FILE).read_text()) == pretrain.model_config()
    merges = gzip.decompress((folder / pretrain.MERGES_FILE).read_bytes())
    assert merges.count(b"\n") == 1022  # a version line, then 1,022 merges; no newline at the end
    with gzip.open(open_clip.tokenizer.default_bpe()) as full:
        assert full.read().startswith(merges + b"\n")


def test_any_text_has_ids_in_range(folder: Path) -> None:
    texts = ["a photo of the digit three.", "", "🙂🦆", "数字三", "\x00\n", "long words " * 99]
    ids = pretrain.load_tokenizer(folder)(texts)
    assert ids.shape == (len(texts), 24)
    assert ids.min() >= 0
    assert ids.max() == 1535  # the end token, used by token pooling
    assert (ids == 1535).any(dim=1).all()


def test_zero_shot_of_the_shipped_weights() -> None:
    """The figures of the run that produced the shipped files, with tolerance for rounding on
    another CPU."""
    assert pretrain.report(SHIPPED) == pytest.approx(
        {
            "digits": 0.751,
            "digits turned by 180 degrees": 0.395,
            "held-out fonts, digits": 1.0,
            "held-out fonts, all concepts": 0.751,
        },
        abs=0.01,
    )


# Training.


def test_files_are_readable_and_nothing_partial_is_left(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == sorted(FILES)
    assert {stat.S_IMODE((written / name).stat().st_mode) for name in FILES} == {0o644}


def test_a_fresh_process_gives_the_same_bytes(written: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import torch; "
        "torch.set_num_threads(1); "
        "from tools.tiny.pretrain import PretrainConfig, pretrain; "
        f"pretrain({SHORT!r}, Path({str(tmp_path)!r}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=SOURCE.parents[1], check=True)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_seed_decides_and_global_generator_is_left_alone(written: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    pretrain.pretrain(replace(SHORT, seed=1), tmp_path, progress=lambda _: None)
    assert torch.equal(torch.get_rng_state(), before)
    other, first = (load_file(path / pretrain.WEIGHTS_FILE) for path in (tmp_path, written))
    assert not torch.equal(other["visual.proj"], first["visual.proj"])


def test_loss_falls(tmp_path: Path) -> None:
    config = replace(SHORT, steps=40, batch=32, concepts=16, coloured=4)
    lines: list[str] = []
    losses = pretrain.pretrain(config, tmp_path, progress=lines.append)
    assert len(losses) == 40
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert len(lines) == 1
    assert lines[0].startswith("step 40/40")


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="concepts=17 and coloured=3 must not exceed batch=16"):
        replace(SHORT, concepts=17)


def test_one_positive_each_is_clip_s_own_loss() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5)
    expected = (
        nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)
    ) / 2
    torch.testing.assert_close(
        pretrain.contrastive_loss(logits, torch.eye(5, dtype=torch.bool)), expected
    )


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.main(["--out", str(tmp_path), "--steps", "1", "--seed", "3", "--threads", "1"])
    assert capsys.readouterr().out.startswith("step 1/1")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


# Data.


def test_every_concept_is_drawn_and_fonts_are_held_out() -> None:
    masks, labels = glyphs.draw_masks(glyphs.FONTS)
    assert masks.shape == (1684, 40, 40)
    assert labels.unique().tolist() == list(range(106))
    assert labels.tolist() == sorted(labels.tolist())
    assert masks.amax(dim=(1, 2)).min() > 0.5
    assert masks.max() <= 1
    assert not set(glyphs.FONTS) & set(glyphs.HELD_OUT_FONTS)
    assert sum(c.weight for c in glyphs.CONCEPTS) == pytest.approx(1)


def test_captions_are_true_of_their_images() -> None:
    batch = pretrain.Sampler(pretrain.PretrainConfig(), torch.Generator().manual_seed(0)).draw(1.0)
    assert batch.images.shape == (128, 3, 32, 32)
    assert batch.images.abs().max() <= 1
    assert batch.true.shape == (128, 53)
    assert batch.true.any(dim=0).all()
    assert batch.true.any(dim=1).all()
    image, caption = batch.true.nonzero(as_tuple=True)
    assert torch.equal(batch.image_concepts[image], batch.caption_concepts[caption])
    for text, concept in zip(batch.captions, batch.caption_concepts.tolist(), strict=True):
        assert f"{glyphs.CONCEPTS[concept].kind} {glyphs.CONCEPTS[concept].name}" in text
    assert all(any(ink in text for ink in augment.INKS) for text in batch.captions[40:])


def test_the_words_that_the_digits_task_uses_are_trained() -> None:
    names = "zero one two three four five six seven eight nine".split()  # noqa: SIM905
    captions = {c.caption(t) for c in glyphs.CONCEPTS for t in glyphs.TEMPLATES}
    assert {f"a photo of the digit {name}." for name in names} <= captions
    assert len(glyphs.TEMPLATES) == 10


@pytest.mark.parametrize("hardness", [0.0, 0.15, 1.0])
def test_augmentation_is_a_function_of_its_generator(hardness: float) -> None:
    masks = torch.rand(6, 40, 40, generator=torch.Generator().manual_seed(0))
    kept = masks.clone()
    first, inks = augment.augment(masks, hardness, torch.Generator().manual_seed(1))
    again, _ = augment.augment(masks, hardness, torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert torch.equal(masks, kept)
    assert first.isfinite().all()
    assert inks.min() >= 0
    assert inks.max() < len(augment.INKS)


@pytest.mark.parametrize("name", ["glyphs", "augment", "pretrain"])
def test_training_cannot_see_the_digits(name: str) -> None:
    """Only the evaluation imports scikit-learn, inside `report`."""
    tree = ast.parse((SOURCE / f"{name}.py").read_text())
    users = [
        getattr(top, "name", "module level")
        for top in tree.body
        for node in ast.walk(top)
        if (isinstance(node, ast.Import) and any("sklearn" in a.name for a in node.names))
        or (isinstance(node, ast.ImportFrom) and "sklearn" in (node.module or ""))
    ]
    assert users == (["report"] if name == "pretrain" else [])
