"""The present values of the parameters, and their distribution to the parts of the worker.

Worker thread; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..broker.target import needs_new_connection
from ..config import Config
from ..publisher.publisher import Publisher
from . import log
from .identity import Identity


class Parameters:
    """`values`: as bytes that the shim has checked, in the table's order. `config`: the same
    values as a Config. `set_nice`: sets the nice value of this thread, or raises OSError."""

    def __init__(
        self,
        values: Sequence[bytes],
        config: Config,
        identity: Identity,
        publisher: Publisher,
        set_nice: Callable[[int], None],
    ) -> None:
        self.values = values
        self.config = config
        self._set_nice = set_nice
        self._identity = identity
        self._publisher = publisher
        self._be_nice()

    def set(self, values: Sequence[bytes]) -> None:
        """Take new values."""
        if values == self.values:
            return
        old, new = self.config, Config.from_values(values)
        self.values, self.config = values, new
        if new.worker_nice != old.worker_nice:
            self._be_nice()
        self._identity.configure(new)
        self._publisher.configure(new, reconnect=needs_new_connection(old, new))

    def _be_nice(self) -> None:
        nice = self.config.worker_nice
        try:
            self._set_nice(nice)
        except OSError as error:
            log.write("warning", f"worker-nice {nice} could not be set: {error.strerror or error}")
