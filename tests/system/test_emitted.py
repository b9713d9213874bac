"""What the servers themselves emit, and when: the statements of docs/events.md."""

from __future__ import annotations

import functools
import subprocess
import time

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, wait_for
from tests.fix_servers import EVERY_FAMILY, Mailbox, StartRedis, arguments_for, settled
from tests.servers import NEW_REDIS, NEW_VALKEY, at_least, kind_of

# Keys that are due stay until a client looks at them.
NO_CYCLE = ("DEBUG", "SET-ACTIVE-EXPIRE", 0)


class Emitted:
    """A server with the module, and the events that it has emitted since the last look."""

    def __init__(self, broker: RabbitServer, start: StartRedis, family: str, *options: str) -> None:
        self.family = family
        self._mailbox = Mailbox(broker)
        arguments = arguments_for(broker, self._mailbox)
        self.server = start(family, arguments, ["enable-debug-command yes", *options])
        self.client: redis.Redis = self.server.client()

    def look(self) -> list[str]:
        """Event and key of each event, up to one of a key that is set here."""
        self.client.set("marker", 1)
        found: list[str] = []
        while not found or found[-1] != "set marker":
            found += [
                f"{event.decode()} {key.decode()}"
                for _, event, key in (m.event for m in self._mailbox.receive(1))
            ]
        return found[:-1]

    def of(self, *words: object) -> list[str]:
        """The events of a command."""
        self.client.execute_command(*words)
        return self.look()


@EVERY_FAMILY
def test_a_time_in_the_past(family: str, broker: RabbitServer, start_redis: StartRedis) -> None:
    """Redis says `del`, and Valkey `expired`. SET and fields of hashes differ too."""
    emitted = Emitted(broker, start_redis, family)
    is_redis = kind_of(family) == "redis"
    removed = "del k" if is_redis else "expired k"
    for words in (
        ("EXPIRE", "k", -1),
        ("EXPIREAT", "k", 1),
        ("PEXPIREAT", "k", 1),
        ("GETEX", "k", "EXAT", 1),
    ):
        emitted.client.set("k", 1)
        emitted.look()
        assert emitted.of(*words) == [removed]
    # Redis up to 8.2 sets such a key, and removes it when somebody looks, or in its own cycle.
    sets = is_redis and not at_least(family, redis="8.10")
    emitted.client.set("new", 1, exat=1)
    assert emitted.of("EXISTS", "new") == (["set new", "expire new", "expired new"] * sets)
    emitted.client.set("k", 1)
    emitted.client.set("k", 1, exat=1)
    after = ["set k", "expire k", "expired k"] if sets else [removed]
    assert emitted.of("EXISTS", "k") == ["set k", *after]
    emitted.client.set("k", 1)
    dump = emitted.client.dump("k")
    emitted.look()
    assert emitted.of("RESTORE", "other", 1, dump, "ABSTTL") == []
    if not at_least(family, redis="7.4", valkey="9.0"):
        return
    emitted.client.hset("h", mapping={"a": 1, "b": 2, "c": 3})
    emitted.look()
    past = emitted.of("HPEXPIREAT", "h", 1, "FIELDS", 2, "a", "b")
    assert past == ["hdel h" if is_redis else "hexpired h"]


def test_an_expired_key_is_removed_when_somebody_looks(
    family: str, broker: RabbitServer, start_redis: StartRedis
) -> None:
    """Until the server's own cycle finds it."""
    emitted = Emitted(broker, start_redis, family)
    client = emitted.client
    client.execute_command(*NO_CYCLE)

    def due(*words: object) -> list[str]:
        client.execute_command("SET", "k", 1, "PX", 1)
        second, micro = client.time()
        wait_for(lambda: client.time() > (second, micro + 2000), 30)
        emitted.look()
        return emitted.of(*words)

    for words in (("KEYS", "*"), ("DBSIZE",)):
        assert due(*words) == []
    for words in (("GET", "k"), ("EXISTS", "k"), ("TTL", "k"), ("SCAN", 0), ("DEL", "k")):
        assert due(*words) == ["expired k"]
    assert due("SET", "k", 1) == ["expired k", "set k"]


@pytest.mark.parametrize("aof", [False, True])
def test_keys_that_expire_while_the_server_is_down(
    aof: bool, family: str, broker: RabbitServer, start_redis: StartRedis
) -> None:
    """A key in an RDB file is not loaded any more, and nobody hears of it. One in an append-only
    file is loaded, and expires then."""
    options = ["appendonly yes", "appendfsync always"] if aof else []
    emitted = Emitted(broker, start_redis, family, *options)
    client = emitted.client
    client.execute_command(*NO_CYCLE)
    client.set("k", 1, px=1)
    assert emitted.look() == ["set k", "expire k"]
    settled(client, fallback_length=0, queue_length=0)  # a list would be loaded, and sent again
    if not aof:
        client.save()
    emitted.server.kill()
    time.sleep(0.002)  # so that the key is due, which it probably was before
    emitted.server.start()
    if aof:
        wait_for(lambda: client.info("stats")["expired_keys"] == 1, 30)
        assert emitted.look() == ["expired k"]
    else:
        assert client.exists("k") == 0
        assert emitted.look() == []
        assert client.info("stats")["expired_keys"] == 0


def test_what_has_an_event_and_what_has_none(
    family: str, broker: RabbitServer, start_redis: StartRedis
) -> None:
    emitted = Emitted(broker, start_redis, family)
    for words, expected in (
        (("SET", "a", 1), ["set a"]),
        (("SET", "a", 1), ["set a"]),  # also without a change
        (("HSET", "h", "f", 1), ["hset h"]),
        (("HSET", "h", "f", 1), ["hset h"]),
        (("SADD", "s", "m"), ["sadd s"]),
        (("SADD", "s", "m"), []),
        (("DEL", "none"), []),
        (("EXPIRE", "none", 5), []),
        (("SREM", "s", "m"), ["srem s", "del s"]),  # the last member
        # What was in a key before it is overwritten has no event.
        (("RENAME", "h", "a"), ["rename_from h", "rename_to a"]),
        (("SET", "a", 1), ["set a"]),
        (("SET", "b", 1), ["set b"]),
        (("COPY", "a", "b", "REPLACE"), ["copy_to b"]),
        (("FLUSHALL",), []),
    ):
        assert emitted.of(*words) == expected, words
    settled(emitted.client)


def test_fields_of_a_hash_that_expire(broker: RabbitServer, start_redis: StartRedis) -> None:
    """One event for all fields that are removed together; the message has the key only. With
    `subkeys`, a server that knows the fields tells them: see test_subkeys.py."""
    for family in (NEW_REDIS, NEW_VALKEY):
        emitted = Emitted(broker, start_redis, family)
        emitted.client.hset("h", mapping={"a": 1, "b": 2, "c": 3})
        emitted.client.execute_command("HPEXPIRE", "h", 5, "FIELDS", 2, "a", "b")
        wait_for(functools.partial(_has_one_field, emitted.client), 30)
        assert emitted.look() == ["hset h", "hexpire h", "hexpired h"]


@EVERY_FAMILY
def test_a_replica_does_not_hear_why_a_key_is_gone(family: str, start_redis: StartRedis) -> None:
    """The server sends it the same command for a key that expired, was evicted or was deleted."""
    options = ["repl-diskless-sync-delay 0", "maxmemory-policy allkeys-random"]
    server = start_redis(family, None, options)
    client = server.client()
    reader = ["redis-cli", "-p", str(server.port), "--replica"]
    with subprocess.Popen(reader, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as replica:
        try:
            wait_for(lambda: client.info("replication").get("slave0", {}).get("state") == "online")
            client.set("expires", 1, px=1)
            wait_for(lambda: client.exists("expires") == 0, 30)
            client.set("deleted", 1)
            client.unlink("deleted")
            client.set("evicted", 1)
            client.config_set("maxmemory", 1)
            with pytest.raises(redis.ResponseError, match="maxmemory"):
                client.set("refused", 1)
            client.config_set("maxmemory", 0)
            client.set("last", 1)
            assert replica.stdout is not None
            lines = list(iter(replica.stdout.readline, b'"SET","last","1"\n'))
        finally:
            replica.kill()
    gone = {line for line in lines if line.startswith((b'"DEL"', b'"UNLINK"'))}
    words = {tuple(line.decode().strip().replace('"', "").split(",")) for line in gone}
    assert {key for _, key in words} == {"expires", "deleted", "evicted"}
    assert {word for word, key in words if key != "deleted"} <= {"DEL", "UNLINK"}


def _has_one_field(client: redis.Redis) -> bool:
    return client.hlen("h") == 1
