"""What a method is given and what it returns: one explanation to be computed, and its attributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from service.catalog.traits import Traits
from service.domain import (
    Combination,
    Completeness,
    Contrast,
    Floats,
    GroupShare,
    OptionValue,
    OutputSpace,
    Target,
    ToleranceOf,
    read_target,
)
from service.methods.questions import Outputs, Readout, Rows, Steps
from service.numerics.cells import Grouping


@dataclass(frozen=True, slots=True)
class Problem:
    """One explanation to be computed: all a method may know.

    `baselines` [K, inputs] with the deployed artefact's `baseline_outputs` [K]; `center` is the mean baseline, with the
    deployed `center_output`; `output` is the deployed output f(x). All outputs are what `target` reads in
    `output_space`.
    `low` and `high` [inputs] are the range of each input. `floor` is the smallest denominator of a relative
    completeness error, in units of the output.
    """

    input: Floats
    output: float
    baselines: Floats
    baseline_outputs: Floats
    center: Floats
    center_output: float
    low: Floats
    high: Floats
    target: Target
    output_space: OutputSpace
    tolerance: float
    floor: float
    max_evaluations: int
    seed: int
    options: Mapping[str, OptionValue]
    traits: Traits
    tolerance_of: ToleranceOf = ToleranceOf.ATTRIBUTION

    @property
    def readout(self) -> Readout:
        """The readout of the output space."""
        return Readout.PROBABILITY if self.is_linked else self.logit_readout

    @property
    def is_finite(self) -> bool:
        """Whether all outputs that a method starts from are numbers."""
        return bool(np.isfinite([self.output, self.center_output, *self.baseline_outputs]).all())

    @property
    def is_linked(self) -> bool:
        """Whether the explained output lies behind the model's link, and is no linear function of its numbers."""
        is_linked = isinstance(self.target, Combination) and self.target.is_linked
        return is_linked or self.output_space is OutputSpace.PROBABILITY

    @property
    def logit_readout(self) -> Readout:
        """The readout of a label's logit, or of a value; where two labels share one logit, of their log-odds."""
        return Readout.MARGIN if self.traits.has_one_logit else Readout.LOGIT

    @property
    def target_index(self) -> int:
        """The number of the label that is explained, which may be contrasted with another."""
        if isinstance(self.target, Contrast):
            return self.target.index
        assert isinstance(self.target, int)
        return self.target

    def read(self, outputs: Outputs) -> Floats:
        """What the target reads of deployed `outputs` [n, outputs]: [n]."""
        return read_target(outputs[self.output_space], self.target)

    def logit_of(self, logits: Floats) -> Floats:
        """What the target reads [n], as `logit_readout` has it, of the network's `logits` [n, outputs]."""
        read = logits - logits[:, ::-1] if self.traits.has_one_logit else logits
        if isinstance(self.target, Combination):
            return self.target.sum_of(read)
        own: Floats = read[:, self.target]
        return own

    def rows(self, rows: Floats) -> Rows:
        """Asks for the gradients of the explained output at `rows` [n, inputs]."""
        if isinstance(self.target, Combination):
            return Rows(rows, self.readout, np.zeros(len(rows), dtype=np.intp), self.target)
        return Rows(rows, self.readout, np.full(len(rows), self.target))

    @property
    def labels(self) -> int:
        """The number of the network's outputs."""
        return self.traits.labels

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input: (features,), (channels, height, width) or (positions, dimensions)."""
        return self.traits.shape

    def per_component(self, values: Floats) -> Floats:
        """`values` [..., inputs] summed to components: a feature, a pixel over its channels, a position."""
        shaped = values.reshape(*values.shape[:-1], *self.shape)
        if self.traits.columns:
            return summed_to_components(values, self.traits)
        summed: Floats = shaped.sum(axis=self.traits.summed_axes) if self.traits.summed_axes else shaped
        return summed.reshape(*values.shape[:-1], self.traits.components)

    def per_input(self, values: Floats) -> Floats:
        """For each input the value of its component, of `values` [components]: [inputs]."""
        traits = self.traits
        if traits.columns:
            of_columns: Floats = values[np.array(traits.columns)]
            return of_columns
        summed = {at % len(traits.shape) for at in traits.summed_axes}
        kept = [1 if at in summed else size for at, size in enumerate(traits.shape)]
        spread: Floats = np.broadcast_to(values.reshape(kept), traits.shape).ravel()
        return spread

    def components_of(self, values: Floats) -> Floats:
        """The `values` of an attribution, which may be one a pixel already, by component: [components]."""
        return values if values.size == self.traits.components else self.per_component(values)

    @property
    def grouping(self) -> Grouping:
        """Which inputs make up each component: the dimensions of a position, the columns of a category."""
        if self.traits.columns:
            return Grouping(
                membership=(np.array(self.traits.columns)[:, None] == np.arange(self.traits.components)) * 1.0
            )
        return Grouping(run=self.shape[-1] if self.traits.has_embeddings else 1)

    def magnitude(self, values: Floats) -> float:
        """The L1 norm of attributions by component: for a token or a category, of its sum and not of its parts."""
        is_of_parts = self.traits.has_embeddings or bool(self.traits.columns)
        return float(np.abs(self.per_component(values) if is_of_parts else values).sum())

    def number(self, option: str) -> float:
        """The value of a numeric option of the method."""
        return cast(float, self.options[option])


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a method returns: `values` and how well they are known.

    `values` are [inputs], or [pixels], one a pixel and not one a channel of it; `standard_error` is [components], see
    `Problem.per_component`. Complete values sum to f(x) - `baseline_output`. `path_error` is E (see
    `service.numerics.refinement`) or its counterpart, an estimate of the L1 error of the values in units of the output;
    None where no integral was taken. `output` is the end of the path where it is not f(x): the mean over noisy copies.
    `errors` is how far the value of each component (see `Problem.grouping`) may be off, [components], where more is
    known of it than that none is off by more than the L1 error.
    `stopped` names what ended the computation before the tolerance was met: budget, deadline, or precision, that of the
    model's own arithmetic.
    """

    values: Floats
    baseline_output: float
    completeness: Completeness
    path_error: float | None
    evaluations: int
    rule: str
    stopped: str | None = None
    standard_error: Floats | None = None
    interactions: Floats | None = None
    groups: tuple[GroupShare, ...] = ()
    output: float | None = None
    errors: Floats | None = None


Method = Steps[Attribution]
"""A method at work on one problem."""


def summed_to_components(values: Floats, traits: Traits) -> Floats:
    """`values` [..., inputs] of a table, summed to the components that its columns belong to: [..., components]."""
    columns = np.array(traits.columns)
    return np.stack([values[..., columns == component].sum(axis=-1) for component in range(traits.components)], axis=-1)
