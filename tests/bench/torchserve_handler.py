"""Peer C's handler: TorchServe with Captum, as short as one can write it. TorchServe runs it in a worker of its own.

`/explanations/loan` takes the same body as the other peers and answers the same content: prediction and attributions
by Integrated Gradients with 50 steps from the mean of the training set, in probability space, on the torch twin. It is
a plain class and not a `BaseHandler`, which would run more code for the same answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

STEPS = 50


class CaptumHandler:
    """One request, one call of Captum; TorchServe calls `initialize` once and `handle` with each batch (of one)."""

    def initialize(self, context: Any) -> None:
        """Loads the model from the archive."""
        from tests.bench.peers import captum_explainer

        folder = Path(context.system_properties["model_dir"])
        self._explain = captum_explainer(folder, folder / "training.safetensors", STEPS)

    def handle(self, data: list[dict[str, Any]], _context: Any) -> list[dict[str, Any]]:
        """One answer for each request of the batch."""
        return [self._explain(request["body"]["instances"][0]) for request in data]
