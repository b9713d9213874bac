"""What users of Redis see of the module: nothing while nothing happens, and no reading of theirs.

And nobody can make the module's own queues grow with changes of its lists.

Seen means: in MONITOR, INFO commandstats, keyspace_hits and keyspace_misses, and as keyspace
events.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.tables.keys import KEY
from tests.fix_servers import Mailbox, StartRedis, arguments_for, list_length, settled

# Seconds of Redis' clock. The module looks at its list once a second.
IDLE = 4


# The commands of the onlooker, and of its connections.
OWN = {"info", "time", "monitor", "psubscribe", "ping", "hello", "config|set", "client|setinfo"}


class Onlooker:
    """Looks at a server from outside; its own commands are not among what it sees."""

    def __init__(self, server: RedisServer) -> None:
        self.client = server.client()
        self.client.config_set("notify-keyspace-events", "KEAm")
        self.monitor = server.client(socket_timeout=5)
        self.events = server.client().pubsub()
        self.events.psubscribe("__key*")
        assert self.events.get_message(timeout=5) is not None

    def numbers(self) -> dict[str, Any]:
        """Calls of each command that is not the onlooker's own, and hits and misses."""
        calls = self.client.info("commandstats")
        stats = self.client.info("stats")
        return {
            name.removeprefix("cmdstat_"): numbers["calls"]
            for name, numbers in calls.items()
            if name.removeprefix("cmdstat_") not in OWN
        } | {name: stats[name] for name in ("keyspace_hits", "keyspace_misses")}

    @contextlib.contextmanager
    def sees(self) -> Iterator[list[Any]]:
        """Yields the list of what was seen, which is filled at the end of the block."""
        seen: list[Any] = []
        before = self.numbers()
        with self.monitor.monitor() as monitor:
            yield seen
            mark = f"mark-{len(seen)}"
            self.client.execute_command("PING", mark)
            for command in monitor.listen():
                words = command["command"].lower().split()
                if words == ["ping", mark]:
                    break
                if words[0] not in OWN:
                    seen.append(command["command"])
        after = self.numbers()
        seen += [
            f"{name}: {after[name] - before.get(name, 0)}"
            for name in after
            if after[name] != before.get(name, 0)
        ]
        while (event := self.events.get_message(timeout=0.1)) is not None:
            seen.append(event["channel"])


def let_pass(client: redis.Redis, seconds: int) -> None:
    """Waits until Redis' clock has gone on."""
    until = client.time()[0] + seconds
    wait_for(lambda: client.time()[0] >= until, 30)


@pytest.mark.parametrize("listed", [0, 3])
def test_an_idle_module_is_not_seen(family: str, listed: int, start_redis: StartRedis) -> None:
    """The list is looked at regularly, because somebody may have changed it without an event."""
    server = start_redis(family, arguments_for(free_port()))
    client = server.client()
    if listed:
        client.mset({f"k{number}": 1 for number in range(listed)})
        wait_for(lambda: list_length(client) == listed, 30)
    # After a load the handler reads the length of the list with a command, once.
    settled(client, queue_length=0, fallback_length=listed)
    onlooker = Onlooker(server)
    with onlooker.sees() as seen:
        let_pass(client, IDLE)
    assert seen == []


def test_looks_touch_no_watch(family: str, start_redis: StartRedis) -> None:
    """A client that watches the list is not told of a change when the list is only looked at."""
    server = start_redis(family, arguments_for(free_port()))
    client = server.client()
    client.set("k", 1)
    wait_for(lambda: list_length(client) == 1, 30)
    with client.pipeline() as transaction:
        transaction.watch(KEY)
        let_pass(client, 2)
        transaction.multi()
        transaction.get("k")
        assert transaction.execute() == [b"1"]


# ---- many changes of a list ----------------------------------------------------


def memory_of(server: RedisServer) -> int:
    """Bytes of memory of the server's process."""
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def test_changes_of_a_list_do_not_pile_up(start_redis: StartRedis) -> None:
    """A script changes a key that could be a list, two million times; as many requests would be
    80 MB, and the handler would answer nothing before it had read them."""
    server = start_redis(arguments=arguments_for(free_port()))
    client = server.client(socket_timeout=120)
    settled(client)
    before = memory_of(server)
    script = "for i = 1, ARGV[1] do redis.call('SET', KEYS[1], i) end"
    client.eval(script, 1, "keyspaceamqp:{other}:fallback", 2_000_000)
    assert client.execute_command("KEYSPACEAMQP.FALLBACK", "LEN") == 0
    assert memory_of(server) - before < 20_000_000


def test_changes_of_more_lists_than_are_told_apart(family: str, start_redis: StartRedis) -> None:
    server = start_redis(family, arguments_for(free_port()))
    client = server.client()
    client.mset({f"k{number}": 1 for number in range(5)})
    wait_for(lambda: list_length(client) == 5, 30)
    script = (
        "for i = 1, 1000 do redis.call('SET', 'keyspaceamqp:{x' .. i .. '}:fallback', 1) end "
        "redis.call('SET', 'keyspaceamqp:{' .. string.rep('x', 1000) .. '}:fallback', 1) "
        "redis.call('DEL', KEYS[1])"
    )
    client.eval(script, 1, KEY)
    settled(client, fallback_length=0, dropped_fallback_removed=5)


def test_the_last_change_gives_the_reason(family: str, start_redis: StartRedis) -> None:
    """In one turn of Redis a client changes the list, and then the list expires."""
    server = start_redis(family, arguments_for(free_port()))
    client = server.client()
    client.mset({f"k{number}": 1 for number in range(5)})
    wait_for(lambda: list_length(client) == 5, 30)
    with client.pipeline(transaction=False) as pipeline:
        pipeline.lset(KEY, 0, "x")
        pipeline.pexpire(KEY, 20)
        pipeline.eval("for i = 1, 30000000 do end", 0)  # a tenth of a second
        pipeline.exists(KEY)
        assert pipeline.execute()[-1] == 0
    settled(client, fallback_length=0, dropped_fallback_expired=5)


# ---- values of keys --------------------------------------------------------------

# Strings in all forms that servers know: numbers, small shared numbers, short ones, long ones.
STRINGS = {
    "shared": "7",
    "number": "-123456789",
    "largest": str(2**63 - 1),
    "almost": "007",
    "empty": "",
    "short": "short",
    "embedded": "x" * 44,
    "between": "x" * 80,
    "long": "y" * 1000,
}
VALUE = ["keyspaceamqp.format json", "keyspaceamqp.value 500"]


def write_strings(client: redis.Redis) -> None:
    for key, text in STRINGS.items():
        client.set(key, text)
    client.append("short", "er")  # short, and yet kept as a long one is
    client.incr("shared")


def forms(client: redis.Redis) -> list[bytes]:
    """How the server keeps the strings. (How much memory they take depends on what was free.)"""
    return [client.object("encoding", key) for key in STRINGS]


def test_reading_a_value_changes_nothing(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Neither how the server keeps it nor what users see; from the second time on, when the module
    knows how the server keeps strings, there is no command."""
    # Without a list: a pause of the broker's would show as a push.
    server = start_redis(family, arguments_for(broker, mailbox, size=-1), options=VALUE)
    client = server.client()
    client.config_set("keyspaceamqp.value", 0)
    write_strings(client)
    before = forms(client)
    client.config_set("keyspaceamqp.value", 500)
    for _ in range(8):
        client.delete(*STRINGS)
        write_strings(client)
    assert forms(client) == before
    onlooker = Onlooker(server)
    client.delete(*STRINGS)
    with onlooker.sees() as seen:
        write_strings(client)
    own = len(STRINGS) + 2
    texts = [item for item in seen if isinstance(item, str)]
    assert [text.split()[0] for text in texts[:own]] == ["SET"] * len(STRINGS) + [
        "APPEND",
        "INCRBY",
    ]
    assert sorted(texts[own:]) == ["append: 1", "incrby: 1", f"set: {len(STRINGS)}"]
    channels = {item for item in seen if isinstance(item, bytes)}
    assert not [channel for channel in channels if channel.endswith(b":keymiss")]
    count = own * 10 + len(STRINGS) * 9
    messages = [json.loads(message.body) for message in mailbox.receive(count)][-own:]
    assert [(m["key"], m["value"]["data"]) for m in messages] == [
        *((key, text[:500]) for key, text in STRINGS.items()),
        ("short", "shorter"),
        ("shared", "8"),
    ]


def test_a_writer_is_no_reader(family: str, start_redis: StartRedis) -> None:
    """With client-side caching, a client hears of changes of the keys that it has read. That the
    module reads what it has written does not count."""
    server = start_redis(family, arguments_for(free_port()), options=VALUE)
    other = server.client()
    listener = server.client(protocol=2).pubsub()
    listener.subscribe("__redis__:invalidate")
    assert listener.get_message(timeout=5) is not None
    (subscriber,) = other.client_list(_type="pubsub")
    writer = server.client(single_connection_client=True)
    writer.execute_command("CLIENT", "TRACKING", "ON", "REDIRECT", subscriber["id"])
    for _ in range(8):
        write_strings(writer)
    other.set("read", "x")
    assert writer.get("read") == b"x"
    write_strings(other)
    other.set("read", "y")
    heard = []
    while b"read" not in heard:
        event = listener.get_message(timeout=5)
        assert event is not None
        heard += event["data"]
    assert heard == [b"read"]
