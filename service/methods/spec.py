"""How a method is announced: its name, its options with their bounds, what it costs, and where it does not apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as abridged

from service.catalog.nearest import did_you_mean
from service.catalog.traits import Traits
from service.domain import Completeness, OptionValue
from service.methods.problem import Method, Problem

MAX_GROUPS = 100
MAX_MEMBERS = 10_000


@dataclass(frozen=True, slots=True)
class Components:
    """What can be grouped: features by their `names`, or `count` numbered positions or pixels."""

    names: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Choice:
    """An option that takes one of a few words."""

    name: str
    default: str
    choices: tuple[str, ...]
    description: str

    def read(self, value: object, components: Components) -> OptionValue:  # noqa: ARG002 - one shape for all options
        """The value as methods take it. Raises ValueError, saying what is allowed."""
        if not isinstance(value, str) or value not in self.choices:
            near = did_you_mean(value, self.choices)
            raise ValueError(f"option {self.name} is {abridged(value)}; the values are {', '.join(self.choices)}{near}")
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """An option that takes a number from `low` to `high`, both included; a whole one where the default is."""

    name: str
    default: float
    low: float
    high: float
    description: str

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are taken."""
        return isinstance(self.default, int)

    def read(self, value: object, components: Components) -> OptionValue:  # noqa: ARG002
        """The value as methods take it. Raises ValueError, saying what is allowed."""
        is_number = type(value) is int or (type(value) is float and not self.is_whole)
        if not is_number or not self.low <= value <= self.high:  # type: ignore[operator]
            kind = "a whole number" if self.is_whole else "a number"
            raise ValueError(
                f"option {self.name} is {abridged(value)}; it must be {kind} from {self.low:g} to {self.high:g}"
            )
        return value if self.is_whole else float(value)  # type: ignore[arg-type, return-value]


@dataclass(frozen=True, slots=True)
class Groups:
    """An option that takes groups of features: a list of lists of names, or of numbers where features have no names."""

    name: str
    description: str
    default: tuple[tuple[int, ...], ...] = ()

    def read(self, value: object, components: Components) -> OptionValue:
        """The groups by the numbers of their features, ascending. Raises ValueError, saying what is allowed."""
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > MAX_GROUPS:
            raise ValueError(f"option {self.name} must be a list of at most {MAX_GROUPS} lists of features")
        if sum(len(group) for group in value if isinstance(group, Sequence)) > MAX_MEMBERS:
            raise ValueError(f"option {self.name}: all groups together must have at most {MAX_MEMBERS} members")
        numbers = {name: number for number, name in enumerate(components.names)}
        return tuple(self._group(group, components.count, numbers) for group in value)

    def _group(self, group: object, count: int, numbers: Mapping[str, int]) -> tuple[int, ...]:
        if not isinstance(group, Sequence) or isinstance(group, str) or not 0 < len(group) <= count:
            raise ValueError(f"option {self.name}: each group must be a list of from 1 to {count} features")
        return tuple(sorted({self._member(member, count, numbers) for member in group}))

    def _member(self, member: object, count: int, numbers: Mapping[str, int]) -> int:
        if isinstance(member, str) and member in numbers:
            return numbers[member]
        if type(member) is int and 0 <= member < count:
            return member
        near = did_you_mean(member, numbers)
        raise ValueError(f"option {self.name}: there is no feature {abridged(member)}{near}")


Option = Choice | Number | Groups


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that determine a method's cost and whether it applies."""

    traits: Traits
    baseline_size: int
    options: Mapping[str, OptionValue]

    def number(self, option: str) -> float:
        """The value of a numeric option."""
        value = self.options[option]
        assert isinstance(value, int | float)
        return value


Cost = Callable[[Facts], int]


def everywhere(facts: Facts) -> str | None:  # noqa: ARG001
    """The `not_applicable` of a method that applies to every model."""
    return None


def needs_classes(name: str) -> Callable[[Facts], str | None]:
    """The `not_applicable` of a method that searches where another label becomes the likeliest."""

    def not_applicable(facts: Facts) -> str | None:
        if facts.traits.link.is_shared:
            return None
        return (
            f"{name} goes to where another label becomes the likeliest, and of this model's outputs none gives way to "
            "another; use integrated_gradients"
        )

    return not_applicable


def one_point(facts: Facts) -> int:  # noqa: ARG001
    """The cost of a single gradient."""
    return 1


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method by its wire name.

    `least_points` gives the smallest number of gradient points that give any answer, and `usual_points` the number to
    reckon with when work is admitted; `cost` says it in words. `uses_seed` says that the seed matters.
    `not_applicable` gives the reason why the method does not apply, and what to use instead; None where it does.
    `most_copies` is the largest number of noisy copies it may be asked for. `gives_reasons` says that a value is what
    its feature moved the output by from the baseline, up or down, so that the largest can be told to a consumer as
    reasons.
    """

    name: str
    attribute: Callable[[Problem], Method]
    completeness: tuple[Completeness, ...]
    least_points: Cost
    usual_points: Cost
    cost: str
    description: str
    citation: str
    options: tuple[Option, ...] = ()
    uses_seed: bool = False
    gives_reasons: bool = False
    most_copies: int = 1000
    not_applicable: Callable[[Facts], str | None] = everywhere

    def defaults(self) -> dict[str, OptionValue]:
        """The options of a request that names none, by name."""
        return {option.name: option.default for option in self.options}
