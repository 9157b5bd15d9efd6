"""A baseline set as methods need it, with the outputs over it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from service.catalog.baseline_outputs import Outputs
from service.domain import Floats, OutputSpace
from service.engine.kernels.kernel import Deployed, DeployedKernel, DeployedOutputs, Segment


@dataclass(frozen=True, slots=True)
class PreparedBaseline:
    """A baseline set with the deployed artefact's outputs over it.

    `rows` [K, inputs], their mean `center` [inputs], and by output space `outputs` [K, outputs] and `center_outputs`
    [outputs].
    """

    rows: Floats
    center: Floats
    outputs: Mapping[OutputSpace, Floats]
    center_outputs: Mapping[OutputSpace, Floats]

    @property
    def all_outputs(self) -> Outputs:
        """By output space, the outputs over the rows and, last, over their mean: [K + 1, outputs]."""
        return {
            space: np.concatenate([values, self.center_outputs[space][None]]) for space, values in self.outputs.items()
        }


def prepare_baseline(
    rows: Floats,
    deployed: DeployedKernel,
    known: Mapping[OutputSpace, Floats] | None,
    seen: Callable[[Floats], Floats] = lambda rows: rows,
    forwards: DeployedKernel | None = None,
    spaces: Collection[OutputSpace] | None = None,
) -> PreparedBaseline:
    """The set `rows` [K, columns] as methods see it, with its mean and the outputs over both.

    `known` outputs are used where they are in all of the model's output `spaces`.
    """
    inputs = seen(rows)
    center = inputs.mean(axis=0).astype(deployed.row_type).astype(np.float64)
    outputs = known
    if outputs is None or not _is_whole(outputs, len(rows), spaces):
        at_rows, at_center = outputs_over(deployed, rows), outputs_over(forwards or deployed, center[None])
        outputs = {space: np.concatenate([at_rows[space], at_center[space]]) for space in at_rows}
    return PreparedBaseline(
        inputs,
        center,
        {space: values[:-1] for space, values in outputs.items()},
        {space: values[-1] for space, values in outputs.items()},
    )


def _is_whole(known: Mapping[OutputSpace, Floats], rows: int, spaces: Collection[OutputSpace] | None) -> bool:
    """Whether there are outputs in all of the spaces, over so many rows and their mean."""
    return (spaces is None or set(known) == set(spaces)) and all(len(v) == rows + 1 for v in known.values())


def outputs_over(kernel: DeployedKernel, rows: Floats) -> DeployedOutputs:
    """What a kernel of forward passes answers for any number of rows [n, inputs]."""
    question = Deployed(rows)
    starts = range(0, len(rows), kernel.capacity)
    return kernel.join([kernel.run([Segment(question, at, min(at + kernel.capacity, len(rows)))])[0] for at in starts])
