"""An engine that does nothing: tests derive from it those that do what they need."""

from __future__ import annotations

from typing import Any

from service.domain import Explanation, Prediction, Timings
from service.engine.protocol import Engine, Evaluation, Loaded, Stats


class StandIn(Engine):
    """Every method says that the test did not expect to be asked."""

    __slots__ = ()

    async def explain(self, *_: Any, **__: Any) -> tuple[Explanation, Timings]:
        raise NotImplementedError

    async def repeat(self, *_: Any, **__: Any) -> Explanation:
        raise NotImplementedError

    async def evaluate(self, *_: Any, **__: Any) -> Evaluation:
        raise NotImplementedError

    async def predict(self, *_: Any, **__: Any) -> Prediction:
        raise NotImplementedError

    async def load(self, *_: Any, **__: Any) -> Loaded:
        raise NotImplementedError

    async def attach(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def detach(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def unload(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def stats(self) -> Stats:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError
