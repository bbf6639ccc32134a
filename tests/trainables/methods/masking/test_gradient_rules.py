"""Every rule against its formula, reimplemented element by element, and at its limits."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from trainables.methods.gradient_rules import (
    GRADIENT_RULES,
    Dropping,
    RuleName,
    keep,
    opposed,
    purity,
    sign_purity,
)

numbers = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
rows = st.lists(
    st.tuples(numbers, numbers, st.floats(0, 1, width=32, exclude_max=True)),
    min_size=1,
    max_size=30,
)
leaks = st.floats(0, 1)
Rows = list[tuple[float, float, float]]


def merged(rule: RuleName, table: Rows, dropping: Dropping | None = None) -> list[float]:
    a, b, uniform = torch.tensor(table, dtype=torch.float64).T
    given = a.clone(), b.clone()
    return GRADIENT_RULES[rule].merge(*given, lambda: uniform, dropping or Dropping()).tolist()


def close(found: list[float], wanted: list[float]) -> bool:
    return all(
        math.isclose(f, w, rel_tol=1e-9, abs_tol=1e-9) for f, w in zip(found, wanted, strict=True)
    )


def one_purity(a: float, b: float) -> float:
    return 1.0 if a * b >= 0 else abs(a) / (abs(a) + abs(b))


@given(rows)
def test_none_and_sum(table: Rows) -> None:
    assert merged("none", table) == [a for a, _, _ in table]
    assert close(merged("sum", table), [a + b for a, b, _ in table])


@given(rows, leaks)
def test_gradient_dropout(table: Rows, leak: float) -> None:
    wanted = [a if one_purity(a, b) > u else (1 - leak) * a for a, b, u in table]
    assert close(merged("gradient-dropout", table, Dropping(leak=leak)), wanted)


@given(rows, leaks, leaks)
def test_sign(table: Rows, leak: float, leak_kl: float) -> None:
    def part(g: float, share: float, positive: float, u: float) -> float:
        kept = (g > 0 and positive > u) or (g < 0 and positive < u)
        return g if kept else (1 - share) * g

    wanted = []
    for a, b, u in table:
        size = abs(a) + abs(b)
        positive = (1 + (a + b) / size) / 2 if size else 0.5
        # On the edge, rounding decides.
        assume(abs(positive - u) > 1e-12)
        wanted.append(part(a, leak, positive, u) + part(b, leak_kl, positive, u))
    assert close(merged("sign", table, Dropping(leak, leak_kl)), wanted)


@given(rows)
def test_agree(table: Rows) -> None:
    wanted = [a + b if (a > 0 and b > 0) or (a < 0 and b < 0) else 0.0 for a, b, _ in table]
    assert close(merged("agree", table), wanted)


@given(rows)
def test_prograd(table: Rows) -> None:
    product = math.fsum(a * b for a, b, _ in table)
    square = math.fsum(b * b for _, b, _ in table)
    assume(abs(product) > 1e-6 or product == 0)
    factor = product / square if product < 0 else 0.0
    wanted = [a - factor * b for a, b, _ in table]
    found = merged("prograd", table)
    assert close(found, wanted)
    # What is left of a does not work against b.
    scale = math.sqrt(square) * math.sqrt(math.fsum(f * f for f in found))
    assert math.fsum(f * b for f, (_, b, _) in zip(found, table, strict=True)) >= -1e-9 * scale


@pytest.mark.parametrize("size", [1e-12, 1e-20, 1e-25, 1e-30])
def test_the_part_that_is_opposed_does_not_depend_on_how_small_gradients_are(size: float) -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1000, generator=rng)
    a = a - b
    found = opposed(size * a, size * b)
    torch.testing.assert_close(found / size, opposed(a, b), rtol=1e-4, atol=1e-5)
    assert found.any()


@given(rows)
def test_equal_gradients(table: Rows) -> None:
    same = [(a, a, u) for a, _, u in table]
    plain, double = [a for a, _, _ in same], [2 * a for a, _, _ in same]
    assert merged("gradient-dropout", same) == plain
    assert merged("prograd", same) == plain
    assert close(merged("agree", same), double)
    assert close(merged("sum", same), double)
    firm = [row for row in same if row[2] > 0] or [(1.0, 1.0, 0.5)]  # P < 0 is false
    assert close(merged("sign", firm), [2 * a for a, _, _ in firm])


@given(rows)
def test_opposite_gradients(table: Rows) -> None:
    opposite = [(a, -a, u) for a, _, u in table]
    assert close(merged("sum", opposite), [0.0] * len(opposite))
    assert close(merged("agree", opposite), [0.0] * len(opposite))
    assert close(merged("prograd", opposite), [0.0] * len(opposite))
    # P = 1/2: a fair coin decides whether a stays, or which of the two.
    assert merged("gradient-dropout", opposite) == [a if u < 0.5 else 0.0 for a, _, u in opposite]
    for found, (a, _, u) in zip(merged("sign", opposite), opposite, strict=True):
        assert found == (abs(a) if u < 0.5 else -abs(a) if u > 0.5 else 0.0)


@given(rows)
def test_without_a_leak_nothing_is_dropped(table: Rows) -> None:
    assert merged("gradient-dropout", table, Dropping(leak=0.0)) == [a for a, _, _ in table]
    nothing = Dropping(leak=0.0, leak_kl=0.0)
    assert close(merged("sign", table, nothing), [a + b for a, b, _ in table])


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_a_silent_teacher_changes_nothing(rule: RuleName) -> None:
    """AgreeGrad is the exception, because there is no agreement."""
    table = [(2.0, 0.0, 0.3), (-1.0, 0.0, 0.9), (0.0, 0.0, 0.1)]
    wanted = [0.0, 0.0, 0.0] if rule == "agree" else [2.0, -1.0, 0.0]
    assert merged(rule, table) == wanted


def test_tiny_gradients_agree() -> None:
    tiny = torch.tensor([1e-30, -1e-30])
    found = GRADIENT_RULES["agree"].merge(tiny.clone(), tiny.clone(), torch.Tensor, Dropping())
    torch.testing.assert_close(found, 2 * tiny, atol=0, rtol=1e-6)


@given(rows)
def test_purity_equals_its_closed_form(table: Rows) -> None:
    a, b, _ = torch.tensor(table, dtype=torch.float64).T
    closed = torch.where(a * b >= 0, 1.0, a.abs() / (a.abs() + b.abs()))
    decided = (a != 0) | (b == 0)  # where a = 0 the gradient is 0 either way
    torch.testing.assert_close(purity(a, b)[decided], closed[decided])


@given(rows, leaks)
def test_purities_are_probabilities(table: Rows, eps: float) -> None:
    a, b, _ = torch.tensor(table).T
    for value in (purity(a, b, eps), sign_purity(a, b, eps)):
        assert ((value >= 0) & (value <= 1)).all()


def test_vanishing_gradients_agree() -> None:
    assert purity(torch.zeros(1), torch.zeros(1)).item() == 1
    assert purity(torch.zeros(1), torch.zeros(1), eps=1e-8).item() == 0.5  # as the code has it


def test_the_released_epsilon_drops_agreeing_gradients_of_its_own_size() -> None:
    small = torch.tensor([1e-8], dtype=torch.float64)
    assert purity(small, small, eps=1e-8).item() == pytest.approx(0.8333, abs=1e-4)
    assert purity(small, small).item() == 1


def test_keep_is_strict() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([-1.0])  # P = 1/2
    assert not keep(a, b, torch.tensor([0.5]))
    assert keep(a, b, torch.tensor([0.4999]))


def test_only_what_drops_draws() -> None:
    drawn: list[RuleName] = []
    for name, rule in GRADIENT_RULES.items():

        def draw(name: RuleName = name) -> Tensor:
            drawn.append(name)
            return torch.rand(3, generator=torch.Generator().manual_seed(0))

        rule.merge(torch.ones(3), -torch.ones(3), draw, Dropping())
    assert drawn == ["gradient-dropout", "sign"]
