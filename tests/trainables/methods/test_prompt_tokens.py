"""Class names in gapped prompts: token positions, available room, initial values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.data.prompts import PromptSet
from trainables.load_backbone import load_backbone
from trainables.methods.base import ClassTexts, MethodError
from trainables.methods.context import ClassPosition, PromptWriter

NAMES = ("zero", "a red square", "St.")


@pytest.fixture(scope="module")
def writer() -> PromptWriter:
    return PromptWriter.of(load_backbone("tiny"))


def classes(*names: str) -> ClassTexts:
    return ClassTexts(torch.zeros(len(names), 128), PromptSet(names, ("{}",)))


@pytest.mark.parametrize(
    ("position", "text"),
    [("end", "a photo of a {}."), ("middle", "a photo {} of a."), ("front", "{} a photo of a.")],
)
def test_words_in_the_gaps_give_the_text_with_these_words(
    writer: PromptWriter, position: ClassPosition, text: str
) -> None:
    """Filling the gaps with the embeddings of words gives the features of these words."""
    names = ("zero", "a red square")
    words = writer.tower.embed(writer.tokenizer(["a photo of a"]))[0, 1:-1]
    prompts = writer.prompts(classes(*names), 4, position)
    found = writer.tower.encode(prompts.filled(words), prompts.ends)
    expected = load_backbone("tiny").encode_text([text.format(name) for name in names])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


NAME = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=5)


@given(
    names=st.lists(NAME, min_size=1, max_size=4),
    tokens=st.integers(1, 6),
    position=st.sampled_from(["end", "middle", "front"]),
)
@settings(max_examples=60, deadline=None)
def test_fixed_tokens_keep_their_order_and_the_context_its_own(
    writer: PromptWriter, names: list[str], tokens: int, position: ClassPosition
) -> None:
    prompts = writer.prompts(classes(*names), tokens, position)
    context = 10 + torch.arange(tokens * 128.0).reshape(tokens, 128)
    filled = prompts.filled(context)
    plain = writer.tokenizer([f"{name}." for name in names])
    for row, gaps, end, ids in zip(filled, prompts.gaps, prompts.ends, plain, strict=True):
        assert torch.equal(row[gaps], context)
        fixed = [place for place in range(int(end) + 1) if place not in gaps.tolist()]
        texts = writer.tower.embed(ids[None])[0, : len(fixed)]
        assert torch.equal(row[fixed], texts)
        assert len(fixed) == int(ids.argmax()) + 1
        assert end == len(fixed) + tokens - 1


def test_each_class_its_own_context_or_all_the_same(writer: PromptWriter) -> None:
    prompts = writer.prompts(classes(*NAMES), 2)
    own = torch.randn(3, 2, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prompts.filled(own)[1], prompts.filled(own[1])[1])
    images = torch.randn(5, 1, 2, 128, generator=torch.Generator().manual_seed(1))
    filled = prompts.filled(images)
    assert filled.shape[:2] == (5, 3)
    assert torch.equal(filled[4], prompts.filled(images[4, 0]))


def test_a_name_that_leaves_no_room_is_refused_with_what_to_do(writer: PromptWriter) -> None:
    assert writer.prompts(classes("zero"), 18).ends.tolist() == [23]
    with pytest.raises(
        MethodError, match=r"24 positions, got 19 .* 4 of 'zero\.'.*context_tokens=18"
    ):
        writer.prompts(classes("one", "zero"), 19)
    with pytest.raises(MethodError, match=r"shorter name .*context_tokens=18 .*--space cocoop"):
        writer.prompts(classes("one", "zero"), 19)
    with pytest.raises(MethodError, match=r"shorter name .*without a context .*--space taskres"):
        writer.prompts(classes("seven hundred and seventy seven thousand and sixty"), 1)


def test_features_alone_are_refused(writer: PromptWriter) -> None:
    with pytest.raises(MethodError, match=r"text tower.*bundle"):
        writer.prompts(ClassTexts(torch.zeros(2, 4)), 4)


def test_first_values(writer: PromptWriter) -> None:
    rng = torch.Generator().manual_seed(3)
    drawn = writer.context(16, "", rng, copies=9)
    assert drawn.shape == (9, 16, 128)
    assert drawn.std() == pytest.approx(0.02, rel=0.05)
    assert drawn.mean().abs() < 1e-3
    words = writer.context(4, "a photo of a", rng)
    ids = writer.tokenizer(["a photo of a"])[0, 1:5]
    assert torch.equal(words, writer.tower.tokens(ids))
    padded = writer.context(6, "a photo of a", rng, copies=2)
    assert torch.equal(padded[:, :2], torch.zeros(2, 2, 128))
    assert torch.equal(padded[1, 2:], words)
    with pytest.raises(MethodError, match=r"at most context_tokens \(3\) tokens, got 4"):
        writer.context(3, "a photo of a", rng)
