"""Signs checkpoints at intervals while something is recorded, and once more at the end."""

from __future__ import annotations

import asyncio
import logging
from time import time

from service.errors import AnswerableError
from service.ledger.checkpoints import Checkpoint, CheckpointSigner
from service.ledger.clock import Clock
from service.ledger.reader_threads import ReaderThreads
from service.ledger.secret_files import SecretFileError
from service.ledger.signing import NotTheSigner

CHECKPOINT_SECONDS = 5.0

_log = logging.getLogger(__name__)


class CheckpointSchedule:
    """Signs with `signer`, in one of `threads`, every `seconds` in which something was recorded.

    A failure is logged and tried again, since the records themselves are safe.
    """

    def __init__(self, signer: CheckpointSigner, threads: ReaderThreads, clock: Clock, seconds: float) -> None:
        self.signed = time()
        """When the newest checkpoint of any process was signed, in seconds since the epoch; when this object was made,
        where there is none yet, or it cannot be read."""
        self._signer = signer
        self._threads = threads
        self._clock = clock
        self._is_due = False
        self._signing = asyncio.get_running_loop().create_task(self._sign_regularly(seconds))

    def has_recorded(self) -> None:
        """Says that something was recorded, which the next checkpoint is to cover."""
        self._is_due = True

    async def close(self) -> None:
        """Ends the schedule and signs once more."""
        self._signing.cancel()
        await asyncio.wait([self._signing])
        await self._sign()

    async def _sign_regularly(self, seconds: float) -> None:
        await self._read_newest()
        while True:
            await asyncio.sleep(seconds)
            if self._is_due:
                await self._sign()

    async def _sign(self) -> None:
        self._is_due = False
        try:
            checkpoint = await self._threads.call_to_the_end(self._signer.sign)
        except (AnswerableError, NotTheSigner, SecretFileError) as error:
            self._is_due = True
            _log.error("no checkpoint was signed: %s", error)
        except Exception:  # noqa: BLE001 - the next attempt may succeed
            self._is_due = True
            _log.exception("no checkpoint was signed, because of an unexpected error")
        else:
            self._note_time(checkpoint)

    async def _read_newest(self) -> None:
        """Takes the time of the newest checkpoint, so that `signed` is right even where nothing can be signed."""
        try:
            self._note_time(await self._threads.call_to_the_end(self._signer.newest))
        except Exception as error:  # noqa: BLE001 - signing begins all the same
            _log.error("the newest checkpoint cannot be read: %s", error)

    def _note_time(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            self.signed = checkpoint.created / 1e6
            self._clock.passed(checkpoint.created)
