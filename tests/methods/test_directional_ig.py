"""Integrated Directional Gradients, driven by a plain function: definitions written out, axioms, groups and units."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.catalog.inputs.image import ImageInputs
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import TokenInputs
from service.catalog.traits import Axis, Traits
from service.domain import Completeness, Floats, OutputSpace
from service.methods.directional_ig import DIRECTIONAL_IG, directional_ig
from service.methods.integrated_gradients import integrated_gradients
from service.methods.problem import Attribution, Problem
from service.methods.questions import DeadlinePassed
from service.methods.spec import Facts

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

LOGIT = OutputSpace.LOGIT
Groups = tuple[tuple[int, ...], ...]
X, BASELINE = np.array([1.0, 2.0, -3.0, 0.7]), np.array([0.5, -1.0, 1.1, 0.7])
D = X - BASELINE
WEIGHTS = np.array([1.5, -2.0, 0.25, 1.0])
DRAWS = np.random.default_rng(5)
INNER, OUTER = (torch.from_numpy(DRAWS.normal(size=size)) for size in ((12, 8), (8, 2)))
GROUPS: Groups = ((0, 1), (0, 1, 2), (2, 3), (3,))


def linear(rows: Tensor) -> Tensor:
    score = rows @ torch.from_numpy(WEIGHTS) + 0.3
    return torch.stack([-score, score], dim=1)


def smooth(inputs: Tensor) -> Tensor:
    rows = inputs.flatten(1)
    return torch.tanh(rows @ INNER[: rows.shape[1]] / 2) @ OUTER


def of_groups(slopes: dict[frozenset[int], float]) -> tuple[dict[frozenset[int], float], dict[frozenset[int], float]]:
    """Signed dividends and values by the paper's definitions, from IDG of every group of the family."""
    total = sum(map(abs, slopes.values()))
    dividends = {group: slope / total for group, slope in slopes.items()}
    values = {group: sum(abs(d) for other, d in dividends.items() if other <= group) for group in slopes}
    return dividends, values


@pytest.fixture
def posed(pose: Pose) -> Any:
    def make(
        network: Any,
        *,
        groups: Groups = (),
        patch: int = 4,
        x: Floats = X,
        baseline: Floats = BASELINE,
        smooth: bool = True,
        **fields: Any,
    ) -> Problem:
        options = {"groups": groups, "patch": patch, "rule": "auto"}
        traits = {"kinks": () if smooth else ("relu",)}
        return pose(network, x, baseline[None], **({"space": LOGIT, "options": options, "traits": traits} | fields))

    return make


def family(units: int, groups: Groups) -> list[frozenset[int]]:
    return list(dict.fromkeys([frozenset([unit]) for unit in range(units)] + [frozenset(group) for group in groups]))


def assert_defined(result: Attribution, slopes: dict[frozenset[int], float], groups: Groups) -> None:
    dividends, values = of_groups(slopes)
    assert [share.members for share in result.groups] == list(groups)
    for share in result.groups:
        assert share.dividend == pytest.approx(dividends[frozenset(share.members)], abs=1e-6)
        assert share.value == pytest.approx(values[frozenset(share.members)], abs=1e-6)


def test_on_a_linear_model_a_group_has_its_change_over_its_length(posed: Any, drive: Drive) -> None:
    result = drive(directional_ig(posed(linear, groups=GROUPS)), linear)
    slopes = {}
    for group in family(4, GROUPS):
        own = list(group)
        length = np.linalg.norm(D[own])
        slopes[group] = float((WEIGHTS * D)[own].sum() / length) if length else 0.0
    assert_defined(result, slopes, GROUPS)
    dividends, _ = of_groups(slopes)
    np.testing.assert_allclose(result.values, [dividends[frozenset([unit])] for unit in range(4)], rtol=1e-12)
    assert result.values[3] == 0, "this feature does not move"


def test_it_is_the_integral_of_the_derivative_along_each_groups_direction(posed: Any, drive: Drive) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(60)
    at = torch.from_numpy(BASELINE + (nodes[:, None] + 1) / 2 * D).requires_grad_()
    (gradients,) = torch.autograd.grad(torch.softmax(smooth(at), dim=1)[:, 1].sum(), at)
    slopes = {}
    for group in family(4, GROUPS):
        direction = np.where(np.isin(np.arange(4), list(group)), D, 0.0)
        direction /= np.linalg.norm(direction) or 1.0
        slopes[group] = float(weights / 2 @ (gradients.numpy() @ direction))
    problem = posed(smooth, groups=GROUPS, space=OutputSpace.PROBABILITY, tolerance=1e-7)
    assert_defined(drive(directional_ig(problem), smooth), slopes, GROUPS)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True).map(sorted).map(tuple), max_size=5),
    st.integers(0, 1000),
)
def test_the_papers_axioms_hold(pose: Pose, drive: Drive, asked: list[tuple[int, ...]], seed: int) -> None:
    draws = np.random.default_rng(seed)
    everything = tuple(range(6))
    groups = (*asked, everything)
    options = {"groups": groups, "patch": 4, "rule": "auto"}
    problem = pose(smooth, draws.normal(size=6), draws.normal(size=(1, 6)), LOGIT, options=options)
    result = drive(directional_ig(problem), smooth)
    value = {share.members: share.value for share in result.groups} | {
        (k,): abs(v) for k, v in enumerate(result.values)
    }
    assert value[everything] == pytest.approx(1)
    assert min(value.values()) >= 0
    for small in value:
        for large in value:
            if set(small) <= set(large):
                assert value[small] <= value[large] + 1e-12
            whole = tuple(sorted((*small, *large)))
            if not set(small) & set(large) and whole in value:
                assert value[small] + value[large] <= value[whole] + 1e-12


def test_dividends_sum_to_one_in_absolute_terms(posed: Any, drive: Drive) -> None:
    groups: Groups = ((0, 1), (1, 2, 3), (0, 1))
    result = drive(directional_ig(posed(smooth, groups=groups)), smooth)
    assert [share.members for share in result.groups] == [(0, 1), (1, 2, 3)], "a group asked for twice is one group"
    assert np.abs(result.values).sum() + sum(abs(share.dividend) for share in result.groups) == pytest.approx(1)
    assert (result.completeness, result.path_error) == (Completeness.NONE, None)


def test_a_table_may_be_told_in_other_units(posed: Any, drive: Drive) -> None:
    factor = np.array([1000.0, 1.0, 0.01, 3.0])

    def rescaled(rows: Tensor) -> Tensor:
        return smooth(rows / torch.from_numpy(factor))

    plain = drive(directional_ig(posed(smooth, groups=GROUPS, tolerance=1e-6)), smooth)
    problem = posed(rescaled, groups=GROUPS, x=factor * X, baseline=factor * BASELINE, high=factor, tolerance=1e-6)
    other = drive(directional_ig(problem), rescaled)
    np.testing.assert_allclose(other.values, plain.values, rtol=1e-6)
    for one, two in zip(plain.groups, other.groups, strict=True):
        assert (one.dividend, one.value) == pytest.approx((two.dividend, two.value))


def test_a_position_has_the_length_of_all_its_dimensions(posed: Any, drive: Drive) -> None:
    x, baseline = DRAWS.normal(size=(2, 3, 4))
    groups: Groups = ((0, 2),)
    problem = posed(smooth, groups=groups, x=x, baseline=baseline, tolerance=1e-7)
    result = drive(directional_ig(problem), smooth, shape=x.shape)
    integrated = drive(integrated_gradients(problem), smooth, shape=x.shape).values.reshape(x.shape)
    slopes = {
        group: float(integrated[list(group)].sum() / np.linalg.norm((x - baseline)[list(group)]))
        for group in family(3, groups)
    }
    assert_defined(result, slopes, groups)
    dividends, _ = of_groups(slopes)
    np.testing.assert_allclose(
        problem.per_component(result.values), [dividends[frozenset([k])] for k in range(3)], atol=1e-9
    )
    assert len(set(result.values.reshape(x.shape)[1].round(12).tolist())) == 1, "spread equally"


def test_the_units_of_an_image_are_patches_over_all_channels(posed: Any, drive: Drive) -> None:
    x, baseline = DRAWS.uniform(size=(2, 2, 2, 3))
    problem = posed(smooth, groups=((0, 1),), patch=2, x=x, baseline=baseline, tolerance=1e-7)
    result = drive(directional_ig(problem), smooth, shape=x.shape)
    integrated = drive(integrated_gradients(problem), smooth, shape=x.shape).values.reshape(x.shape)
    patches = (slice(0, 2), slice(2, 3))
    slopes = {
        frozenset([k]): float(integrated[..., at].sum() / np.linalg.norm((x - baseline)[..., at]))
        for k, at in enumerate(patches)
    }
    slopes[frozenset([0, 1])] = float(integrated.sum() / np.linalg.norm(x - baseline))
    assert_defined(result, slopes, ((0, 1),))
    dividends, _ = of_groups(slopes)
    shown = result.values.reshape(x.shape)
    for k, at in enumerate(patches):
        np.testing.assert_allclose(shown[..., at], dividends[frozenset([k])] / shown[..., at].size, atol=1e-9)


def test_patches_are_counted_row_by_row(posed: Any, drive: Drive) -> None:
    def first_patch_of_the_second_row(images: Tensor) -> Tensor:
        score = images[:, 0, 2, 1]
        return torch.stack([-score, score], dim=1)

    x = np.ones((1, 3, 4))
    problem = posed(first_patch_of_the_second_row, groups=((1, 2),), patch=2, x=x, baseline=np.zeros_like(x))
    result = drive(directional_ig(problem), first_patch_of_the_second_row, shape=x.shape)
    assert np.flatnonzero(result.values).tolist() == [8, 9]
    assert result.groups[0].value == pytest.approx(1)


def test_all_groups_share_the_nodes_of_integrated_gradients(posed: Any, drive: Drive) -> None:
    plain = drive(integrated_gradients(posed(smooth)), smooth)
    grouped = drive(directional_ig(posed(smooth, groups=GROUPS)), smooth)
    assert grouped.evaluations == plain.evaluations
    assert grouped.rule == plain.rule


def test_where_nothing_changes_all_is_zero(posed: Any, drive: Drive) -> None:
    result = drive(directional_ig(posed(smooth, groups=GROUPS, x=BASELINE)), smooth)
    np.testing.assert_array_equal(result.values, 0)
    assert all(share.dividend == share.value == 0 for share in result.groups)


def test_budget_and_deadline_are_those_of_integrated_gradients(posed: Any, drive: Drive) -> None:
    tight = posed(smooth, groups=GROUPS, smooth=False, tolerance=1e-9, max_evaluations=20)
    result = drive(directional_ig(tight), smooth)
    assert (result.stopped, result.evaluations <= 20) == ("budget", True)
    exact = drive(directional_ig(posed(smooth, groups=GROUPS, tolerance=1e-10)), smooth)
    long = posed(smooth, groups=GROUPS, smooth=False, tolerance=1e-9)
    answers = [drive(directional_ig(long), smooth, answers=answers) for answers in (2, 4, 6)]
    assert [answer.stopped for answer in answers] == ["deadline"] * 3
    errors = [np.abs(answer.values - exact.values).sum() for answer in answers]
    assert all(later < earlier for earlier, later in pairwise(errors))
    with pytest.raises(DeadlinePassed):
        drive(directional_ig(long), smooth, answers=0)


@pytest.mark.parametrize(
    ("axes", "shape", "units"),
    [(TabularInputs.axes, (4,), 4), (TokenInputs.axes, (3, 5), 3), (ImageInputs.axes, (3, 9, 8), 6)],
)
def test_a_unit_that_does_not_exist_is_named(axes: tuple[Axis, ...], shape: tuple[int, ...], units: int) -> None:
    traits = Traits(axes, shape, 2, None, (), has_relu=False, has_convolution=False, biases_obstacle=None)
    last, beyond = (
        DIRECTIONAL_IG.not_applicable(Facts(traits, 1, DIRECTIONAL_IG.defaults() | {"groups": ((0, member),)}))
        for member in (units - 1, units)
    )
    assert last is None
    assert beyond is not None
    assert f"no member {units}" in beyond
