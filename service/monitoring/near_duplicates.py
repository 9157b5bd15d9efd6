"""Near-duplicate inputs with unlike explanations from one key: a sign that somebody is looking for an explanation.

Whoever may choose inputs can look for one that is as good as the own and is explained in another way (Ghorbani, Abid
and Zou, AAAI 2019), or ask with one seed after the other. Of each key and each question (version, method, target,
baseline and so on, but no seed) the latest explanations that were computed are kept in memory. One whose input is near
to one of these (`Inputs.distances`), and whose output is nearly the same, but that has fewer than half of the largest
components in common with it, is flagged for review. It is a sign and no proof: fragile explanations do that by
themselves, which `service.faithfulness.fragility` tells.

What is kept is of one process, and is dropped every hour, and whenever a person is erased here. Inputs of more than
`MOST_COLUMNS` numbers are not compared.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from service.catalog.versions import ModelVersion
from service.domain import Explanation, Floats, Plan
from service.faithfulness.fragility import BOUND, TOP
from service.numerics.ranking import top_share

FLAG = "unlike_near_duplicate"
LATEST = 32
"""So many explanations of a question are kept."""
MOST_COLUMNS = 2**14
MOST_NUMBERS = 2**23
"""Of all inputs and attributions that are kept, 64 MiB; then the question asked the longest ago is forgotten."""
KEPT_SECONDS = 3600.0
UNLIKE = 0.5
"""Explanations are unlike with less than this share of their largest components in common."""


@dataclass(slots=True)
class _Latest:
    """Of the latest explanations of one question, of which `count` there were: the `inputs` [`LATEST`, columns], the
    `sizes` of their attributions [`LATEST`, components], and the `outputs` [`LATEST`]."""

    inputs: Floats
    sizes: Floats
    outputs: Floats
    count: int = 0

    @classmethod
    def of(cls, columns: int, components: int) -> _Latest:
        return cls(np.empty((LATEST, columns)), np.empty((LATEST, components)), np.empty(LATEST))

    @property
    def numbers(self) -> int:
        """How many there is room for."""
        return self.inputs.size + self.sizes.size

    @property
    def kept(self) -> int:
        """How many are kept."""
        return min(self.count, LATEST)

    def add(self, row: Floats, sizes: Floats, output: float) -> None:
        """In the place of the oldest."""
        place = self.count % LATEST
        self.inputs[place], self.sizes[place], self.outputs[place] = row, sizes, output
        self.count += 1


class NearDuplicates:
    """The latest explanations of every key, as far as there is room. Used on the event loop.

    `clock` is in seconds, and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._questions: OrderedDict[Hashable, _Latest] = OrderedDict()
        self._numbers = 0

    def flags(self, key_id: str, version: ModelVersion, plan: Plan, explanation: Explanation) -> list[str]:
        """The flag that an explanation raises among those of its key, if any; from now on it is one of these."""
        output, start, values = explanation.output, explanation.baseline_output, explanation.attributions
        if output is None or start is None or values is None or len(plan.input) > MOST_COLUMNS:
            return []
        if self._clock() - self._since > KEPT_SECONDS:
            self.clear()
        question = (
            key_id, version.manifest_digest, plan.method, plan.options, explanation.target, plan.output_space,
            plan.baseline.digest, plan.noise,
        )  # fmt: skip
        row, sizes = np.array(plan.input), np.abs(np.array(values))
        latest, inputs = self._of(question, row, sizes), version.manifest.inputs
        near = np.flatnonzero(inputs.distances(latest.inputs[: latest.kept], row) <= inputs.near)
        same = [place for place in near if abs(latest.outputs[place] - output) <= BOUND * abs(output - start)]
        is_unlike = any(top_share(sizes, latest.sizes[place], TOP) < UNLIKE for place in same)
        latest.add(row, sizes, output)
        return [FLAG] if is_unlike else []

    def clear(self) -> None:
        """Forgets everything."""
        self._questions.clear()
        self._numbers, self._since = 0, self._clock()

    def _of(self, question: Hashable, row: Floats, sizes: Floats) -> _Latest:
        latest = self._questions.get(question)
        if latest is None:
            latest = self._questions[question] = _Latest.of(len(row), len(sizes))
            self._numbers += latest.numbers
            while self._numbers > MOST_NUMBERS:
                _, forgotten = self._questions.popitem(last=False)
                self._numbers -= forgotten.numbers
        self._questions.move_to_end(question)
        return latest
