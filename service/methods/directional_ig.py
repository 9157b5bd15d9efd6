"""Integrated Directional Gradients: what groups of features account for, each along its own direction.

Sikdar, Bhattacharya and Heese, "Integrated Directional Gradients: feature interaction attribution for neural NLP
models", ACL 2021. With D = x - x', x' the mean of the baseline set, and z_S = D_S / |D_S|, the part of D in the group
S divided by its norm,

    IDG(S) = int from 0 to 1 of grad f (x' + alpha D) . z_S dalpha
    d(S) = |IDG(S)| / sum of |IDG(T)| over all groups T       (the dividend of S)
    v(S) = sum of d(T) over all groups T within S             (the value of S)

z_S does not change along the path, so IDG(S) is the sum of the integrated gradients of S over |D_S|: all groups share
one set of nodes, and the integral is taken as in `service.methods.shared.straight_path`. On a linear model it is the
sum over S of w D, over |D_S|.

The groups are those asked for and each smallest one: a feature, a token's position, or a square patch of an image,
counted row by row. As the paper's axioms ask, v is not negative, grows with S, is at least the sum of the values of
disjoint parts, and is 1 for everything. What is told besides, as the authors do by a colour, is the sign of IDG(S): a
dividend is given with it, and the values of the attribution are the dividends of the smallest groups. A patch's or
position's is spread equally over its inputs. In absolute terms all dividends sum to 1, and those of the smallest groups
to 1 less those of the others.

So nothing sums to f(x) - f(x'), and no completeness is promised: dividing by |D_S| leaves how steep f is along the
way, and not how far it leads. In a table, where units differ, |D_S| is measured in the features' ranges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import cast

import numpy as np

from service.catalog.traits import Traits
from service.domain import Completeness, Floats, GroupShare, Indices
from service.methods.problem import Method, Problem
from service.methods.shared.straight_path import straight_path
from service.methods.shared.units import units_of_length
from service.methods.spec import Facts, Groups, MethodSpec, Number, one_point

Members = tuple[int, ...]


def directional_ig(problem: Problem) -> Method:
    """One explanation by Integrated Directional Gradients; see the module's docstring."""
    integrated = yield from straight_path(problem, "auto")
    smallest = _smallest_groups(problem.traits, int(problem.number("patch")))
    groups = tuple(dict.fromkeys(cast(tuple[Members, ...], problem.options["groups"])))
    shares = _Shares.of(problem, integrated.values, smallest, groups)
    return replace(
        integrated,
        values=(shares.dividends / np.bincount(smallest))[smallest],
        completeness=Completeness.NONE,
        path_error=None,
        groups=tuple(shares.of_group(members) for members in groups),
    )


def _smallest_groups(traits: Traits, patch: int) -> Indices:
    """The number of the smallest group that each input belongs to: [inputs]."""
    if traits.columns:
        return np.array(traits.columns)
    if traits.has_space:
        channels, height, width = traits.shape
        down, across = np.arange(height) // patch, np.arange(width) // patch
        return np.tile((down[:, None] * (across[-1] + 1) + across).ravel(), channels)
    return np.repeat(np.arange(traits.components), prod(traits.shape) // traits.components)


@dataclass(frozen=True, slots=True)
class _Shares:
    """The signed dividends of the smallest groups, in their order, and of the larger ones that were asked for."""

    dividends: Floats
    of_groups: dict[frozenset[int], float]

    @classmethod
    def of(cls, problem: Problem, integrals: Floats, smallest: Indices, groups: tuple[Members, ...]) -> _Shares:
        """From integrated gradients [inputs]."""
        sums, squares = np.zeros((2, smallest.max() + 1))
        np.add.at(sums, smallest, integrals)
        np.add.at(squares, smallest, ((problem.input - problem.center) / units_of_length(problem)) ** 2)
        slopes = _slopes(sums, squares)
        together = {
            frozenset(members): float(_slopes(sums[list(members)].sum(), squares[list(members)].sum()))
            for members in groups
            if len(members) > 1
        }
        total = float(np.abs(slopes).sum()) + sum(abs(slope) for slope in together.values())
        total = 1.0 if total == 0 else total
        return cls(slopes / total, {members: slope / total for members, slope in together.items()})

    def of_group(self, members: Members) -> GroupShare:
        """The dividend of the group, and its value: the dividends of its members, and those of all groups within it."""
        whole = frozenset(members)
        own = self.of_groups[whole] if len(members) > 1 else float(self.dividends[members[0]])
        within = sum(abs(dividend) for group, dividend in self.of_groups.items() if group <= whole)
        return GroupShare(members, own, float(np.abs(self.dividends[list(members)]).sum()) + within)


def _slopes(sums: Floats, squares: Floats) -> Floats:
    """IDG: sums of integrated gradients over the norms of their moves; zero where nothing moves."""
    norms = np.sqrt(squares)
    slopes: Floats = np.divide(sums, norms, out=np.zeros_like(norms), where=norms > 0)
    return slopes


def _not_applicable(facts: Facts) -> str | None:
    count = int(_smallest_groups(facts.traits, int(facts.number("patch"))).max()) + 1
    groups = cast(tuple[Members, ...], facts.options["groups"])
    missing = max((member for group in groups for member in group), default=0)
    if missing < count:
        return None
    return f"option groups: there is no member {missing}, the last is {count - 1}; use smaller patches or other groups"


DIRECTIONAL_IG = MethodSpec(
    name="directional_ig",
    attribute=directional_ig,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=lambda _facts: 64,
    cost="as integrated_gradients, shared by all groups",
    options=(
        Groups("groups", "groups of features, positions or patches that are measured together"),
        Number("patch", 4, 1, 64, "the side in pixels of the square patches that an image is made of"),
    ),
    not_applicable=_not_applicable,
    description="how much each feature, and each group of features asked for, accounts for along its own direction",
    citation="Sikdar, Bhattacharya and Heese, ACL 2021",
)
