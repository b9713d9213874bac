"""Requests of Redis' main thread: takes them from their queue and carries them out.

Requests about lists stand between two jobs of the main thread. They are carried out between the
results of these jobs: each length of a list is compared with what the main thread had done before
it, so that the publisher knows how each loss came about.

Worker thread; nothing here waits.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable

from ..cluster.peers import Peers
from ..cluster.watch import ClusterWatch
from ..commands import CommandError, Reply, answer, encode
from ..publisher.actions import FlushMode
from ..publisher.publisher import Publisher
from .handler import Handler
from .lanes import Lane
from .outbox import Outbox
from .parameters import Parameters
from .records import (
    ListChanged,
    Listed,
    PeerMessage,
    Request,
    RunCommand,
    SetConfig,
    SetRole,
    SlotsMoved,
    StartFlush,
    parse_request,
    take_requests,
)
from .shim_api import Shim


class Requests:
    """See the module's docstring. `lane`: the lane for commands of clients. `failed` is
    called in the `except` block of an exception of a request."""

    def __init__(
        self,
        shim: Shim,
        lane: Lane,
        handler: Handler,
        parameters: Parameters,
        publisher: Publisher,
        watch: ClusterWatch,
        peers: Peers,
        outbox: Outbox,
        failed: Callable[[], None],
    ) -> None:
        self._shim = shim
        self._lane = lane
        self._handler = handler
        self._parameters = parameters
        self._publisher = publisher
        self._watch = watch
        self._peers = peers
        self._outbox = outbox
        self._failed = failed
        self._about_lists: collections.deque[ListChanged | Listed] = collections.deque()

    def take(self) -> None:
        """Carry out all requests, oldest first; those about lists wait for `book`."""
        for kind, payload in take_requests(self._shim.requests):
            self._attempt(functools.partial(self._read, kind, payload))

    def _read(self, kind: int, payload: bytes) -> None:
        self.receive(parse_request(kind, payload))

    def receive(self, request: Request) -> None:
        """Carry out a request; if it is about a list, it waits for `book`."""
        if isinstance(request, ListChanged | Listed):
            self._about_lists.append(request)
        else:
            self.carry_out(request)

    def book(self, jobs: int) -> None:
        """Carry out the requests about lists that the main thread sent before it had run more than
        `jobs` jobs."""
        waiting = self._about_lists
        while waiting and waiting[0].jobs <= jobs:
            self._attempt(functools.partial(self.carry_out, waiting.popleft()))

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # the other requests are still carried out
            self._failed()

    def carry_out(self, request: Request) -> None:
        match request:
            case RunCommand(handle=handle, words=words):
                steps = answer(self._handler, words)
                self._lane.add(steps, functools.partial(self._reply, handle))
            case SetConfig(values=values):
                self._parameters.set(values)
            case SetRole(primary=primary, loading=loading, agreed=agreed):
                self._publisher.set_role(primary=primary, loading=loading, agreed=agreed)
                self._watch.set_role(writable=request.writable)
            case ListChanged(what=what, key=key):
                self._publisher.list_changed(what, key)
                self._watch.list_changed(key)
            case Listed():
                self._outbox.listed(request)
            case SlotsMoved(came=came, slots=slots):
                self._watch.slots_moved(slots, came=came)
            case PeerMessage(sender=sender, data=data):
                self._peers.received(sender, data)
            case StartFlush(began=began, id=flush_id, seconds=seconds, mode=mode):
                self._publisher.flush(flush_id, seconds, FlushMode(mode), began)

    def _reply(self, handle: int, reply: Reply | CommandError) -> None:
        """Send the reply of a client's command."""
        self._shim.command_done(handle, encode(reply))
