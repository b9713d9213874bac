"""Requests of Redis' main thread: taken out of their queue, and carried out.

Worker thread; nothing here waits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from ..cluster.peers import Peers
from ..cluster.watch import ClusterWatch
from ..commands import CommandError, Reply, answer, encode
from ..publisher.actions import FlushMode
from ..publisher.publisher import Publisher
from .handler import Handler
from .interface import Shim
from .lanes import Lane
from .parameters import Parameters
from .records import (
    ListChanged,
    PeerMessage,
    Request,
    RunCommand,
    SetConfig,
    SetRole,
    StartFlush,
    parse_request,
    take_requests,
)


class Requests:
    """See the module's text. `lane`: for clients' commands. `failed` is called within
    the handling of an exception over a request."""

    def __init__(
        self,
        shim: Shim,
        lane: Lane,
        handler: Handler,
        parameters: Parameters,
        publisher: Publisher,
        watch: ClusterWatch,
        spread: Peers,
        failed: Callable[[], None],
    ) -> None:
        self._shim = shim
        self._lane = lane
        self._handler = handler
        self._parameters = parameters
        self._publisher = publisher
        self._watch = watch
        self._spread = spread
        self._failed = failed

    def take(self) -> None:
        """Carry out all requests, oldest first."""
        for kind, payload in take_requests(self._shim.requests):
            try:
                self.carry_out(parse_request(kind, payload))
            except Exception:  # the others are to be heard all the same
                self._failed()

    def carry_out(self, request: Request) -> None:
        match request:
            case RunCommand(handle=handle, words=words):
                steps = answer(self._handler, words)
                self._lane.add(steps, functools.partial(self._reply, handle))
            case SetConfig(pushed=pushed, values=values):
                self._parameters.set(values, pushed)
            case SetRole(primary=primary, loading=loading, agreed=agreed):
                self._publisher.set_role(primary=primary, loading=loading, agreed=agreed)
                self._watch.set_role(writable=request.writable)
            case ListChanged(what=what, key=key):
                self._publisher.list_changed(what, key)
                self._watch.list_changed(key)
            case PeerMessage(sender=sender, data=data):
                self._spread.received(sender, data)
            case StartFlush(id=flush_id, seconds=seconds, mode=mode):
                self._publisher.flush(flush_id, seconds, FlushMode(mode))

    def _reply(self, handle: int, reply: Reply | CommandError) -> None:
        """End the command of a client."""
        self._shim.command_done(handle, encode(reply))
