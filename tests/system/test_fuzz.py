"""Random arguments, values, commands and masks for real servers.

With any input the server stands, a refusal says what was wrong and what is accepted, and all values
from before are kept. Each test draws a seed and prints it; KEYSPACE_AMQP_SEED repeats a run that
failed.
"""

from __future__ import annotations

import os
import random
import re
from typing import Any

import pytest
import redis

from keyspace_amqp.config import format_masks
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port
from keyspace_amqp.tables.advice import ADVICE
from keyspace_amqp.tables.commands import COMMANDS
from keyspace_amqp.tables.parameters import INDEX, MASK_BYTES, MASKS_BYTES, PARAMETERS, Kind
from tests.commands.test_live_commands import raw
from tests.fix_servers import MODULE, Mailbox, StartRedis, arguments_for, settled
from tests.pure.test_masks import naive
from tests.system.test_load import loaded

NAMES = [parameter.name for parameter in PARAMETERS]
# There is no name server, so that names fail at once.
HOSTS = [b"127.0.0.1", b"::1", b"localhost", b"..", b"a..b", b"\xff\xfe", b"x" * 255,
         b"127.0.0.1,[::1]:1,localhost:65535"]  # fmt: skip
URLS = [b"", b"amqp://localhost", b"amqps://u:p@127.0.0.1:1,[::1]/v?verify=verify_none&heartbeat=1",
        b"amqp://%ff:%00@localhost/%2f%ff", b"amqps://localhost?cacertfile=/none"]  # fmt: skip
SWITCH = [b"on", b"off"]
PATHS = [b"", b"/there/is/none", b"\xff", b"/dev/null", b"."]
GOOD = {
    "events": [b"xe", b"A", b"g$lshzxetdmn", b"AAAA", b"x" * 64],
    "host": HOSTS,
    "port": [b"1", b"65535", b"0009"],
    "username": [b"", b"guest", b"\xff", b"u u" * 85],
    "password": [b"", b"p", b"\xff\n", b"p" * 1024],
    "heartbeat": [b"0", b"65535"],
    "exchange": [b"", b"amq.direct", b"\xff" * 255],
    "routing-key": [b"", b"a key", b"'\"\\"],
    "delivery-mode": [b"1", b"2"],
    "fallback-size": [b"-1", b"0", b"7", b"-9223372036854775808"],
    "masks": [b"", b"ALL", b"^a b$", b"\\x20 \\\\", b" a ", b"m" * 1024, b"\xff", b"!^a \\x21!"],
    "queue-limit": [b"1048576", b"1099511627776"],
    "worker-nice": [b"10", b"19"],
    "url": URLS,
    "vhost": [b"", b"/", b"\xff", b"v v"],
    "password-file": PATHS,
    "auth-mechanism": [b"plain", b"external"],
    "tls": SWITCH,
    "tls-ca-file": PATHS,
    "tls-cert-file": PATHS,
    "tls-key-file": PATHS,
    "tls-server-name": [b"", b"..", b"a name", b"\xff"],
    "tls-verify": SWITCH,
    "tcp-keepalive": [b"0", b"32767"],
    "node-name": [b"", b"one", b"\xff\n"],
    "format": [b"text", b"json", b"cloudevents", b"cloudevents-structured"],
    "headers": SWITCH,
    "value": [b"0", b"1", b"1048576"],
    "mandatory": SWITCH,
    "app-id": [b"", b"\xff", b"a" * 255],
    "message-type": [b"", b"\xff", b"t" * 255],
    "priority": [b"", b"0", b"255"],
    "expiration": [b"", b"0", b"3999999999"],
    "deduplication-header": SWITCH,
    "databases": [b"ALL", b"0", b"9-3,1", b"0-999999999"],
    "confirm-timeout": [b"0", b"1", b"60", b"86400"],
    "fallback-memory": [b"0", b"2", b"100"],
    "subkeys": [b"0", b"1", b"10000"],
    "outbox": [b"off", b"reply"],
    "cloudevents-prefix": [b"cloudEvents:", b"cloudEvents_", b"ce-"],
}
# All that a refusal may say. Each text names what is accepted, or how to write it.
REASON = re.compile(
    r"(?P<name>[a-z-]+): ('.*'|this value) is not accepted(.*; give .+|: "
    rf"({'|'.join(re.escape(advice.text) for advice in ADVICE)}))"
    r"|wrong arguments, expected: KEYSPACEAMQP\."
    r"|there is no parameter .*; there are events, "
    r"|there is no mask .*; KEYMASK LIST shows what there is"
    r"|a mask cannot be empty; ALL matches every key"
    r"|nothing stands behind the ! of a mask; "
    r"|a snapshot is under way; SNAPSHOT STOP ends it"
    r"|(count|RATE): ['\"].*['\"] is not accepted; give .* from 1 to 10000"
    r"|KEYSPACEAMQP.STATS takes nothing",
    re.DOTALL,
)


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("KEYSPACE_AMQP_SEED", random.randrange(2**32)))
    print(f"KEYSPACE_AMQP_SEED={seed}")
    return random.Random(seed)


def noise(chance: random.Random) -> bytes:
    """Bytes of any kind and, now and then, very many."""
    length = chance.choice([0, 1, 1, 2, 3, 8, 20, 64, 255, 256, 1025])
    if chance.random() < 0.03:
        length = chance.choice([65_536, 65_537, 2_000_000])
    alphabet = chance.choice(
        [b"0123456789", b"-0123456789", b"gxeAKa $", b"\\x20 m", b"\0a", b"'\"\r\n %s", b"! ", None]
    )
    if alphabet is None:
        return chance.randbytes(length)
    return bytes(chance.choices(alphabet, k=length))


def value(chance: random.Random, name: str) -> bytes:
    """A value for a parameter: right, nearly right, or anything."""
    good = chance.choice(GOOD[name])
    kind = chance.random()
    if kind < 0.6:
        return good
    if kind < 0.7:
        at = chance.randrange(len(good) + 1)
        good = good[:at] + chance.choice([b"\0", b" ", b"\\", b"\xff", b"9", b"-"]) + good[at:]
    elif name not in ("host", "url"):
        good = noise(chance)
        if name == "events":  # not every server has these classes, see test_classes.py
            good = good.translate(None, b"aoc")
    elsewhere = name in ("host", "url") and fits(name, good) and good not in (*HOSTS, *URLS)
    return GOOD[name][0] if elsewhere else good


def fits(name: str, given: bytes) -> bool:
    """True if a value is to be accepted: the documented table, written once more."""
    parameter = PARAMETERS[INDEX[name]]
    if b"\0" in given:
        return False
    if parameter.kind is Kind.INTEGER:
        is_number = re.fullmatch(rb"-?[0-9]{1,22}", given)
        return bool(is_number) and parameter.minimum <= int(given) <= parameter.maximum
    if parameter.kind is Kind.EVENTS:
        return 1 <= len(given) <= 64 and set(given) <= set(b"g$lshzxetdmnA")
    if parameter.pattern and not re.fullmatch(
        parameter.pattern, given.decode("utf-8", "surrogateescape")
    ):
        return False
    if parameter.kind is Kind.MASKS:
        bare = re.sub(rb"\\\\|\\x[0-9a-fA-F]{2}", b"m", given)
        return (
            b"\\" not in bare
            and not {b"!", b"\\x21"} & set(given.split())
            and max(map(len, bare.split()), default=0) <= MASK_BYTES
            and len(given) <= MASKS_BYTES
        )
    return parameter.minimum <= len(given) <= parameter.maximum


def parameters(client: redis.Redis) -> dict[bytes, bytes]:
    reply: dict[bytes, bytes] = raw(client, "CONFIG", "GET", "keyspaceamqp.*")
    return reply


def attempt(client: redis.Redis, *words: Any) -> str | None:
    """Gives a command; what a refusal says, or None."""
    try:
        raw(client, *words)
    except redis.exceptions.ResponseError as error:
        return str(error)
    return None


def sound(server: RedisServer, client: redis.Redis) -> None:
    """Checks that the handler has met no error that it was not made for."""
    assert client.ping()
    assert "unexpected exception" not in server.log()
    assert "Traceback" not in server.log()


# ---- load ----------------------------------------------------------------------


def test_load(family: str, chance: random.Random, start_redis: StartRedis) -> None:
    """MODULE LOAD with any arguments; the first that is wrong is named."""
    server = start_redis(family, None)
    client = server.client(protocol=3)
    accepted = 0
    for _ in range(150):
        arguments = [value(chance, name) for name in NAMES[:10][: chance.randrange(11)]]
        if len(arguments) == 10:
            arguments += [noise(chance) for _ in range(chance.randrange(4))]
        masks = arguments[10:]
        wrong = [n for n, given in enumerate(arguments[:10], 1) if not fits(NAMES[n - 1], given)]
        wrong += [n for n, mask in enumerate(masks, 11) if mask in (b"", b"!")]
        if not wrong and masks and not fits("masks", format_masks(masks)):
            wrong = [11]
        before = len(server.log())
        refusal = attempt(client, "MODULE", "LOAD", str(MODULE), *arguments)
        said = server.log()[before:]
        assert (refusal is not None) is bool(wrong), (arguments, refusal, said)
        assert loaded(client) is (not wrong)
        if wrong:
            reason = re.search(rf"argument {wrong[0]}( and later)?, (.*)", said)
            assert reason, (arguments, said)
            assert REASON.search(reason[2]) or "masks: '' is not accepted; give ALL" in reason[2]
            assert len(said) < 3000
        else:
            accepted += 1
            found = parameters(client)
            for name, given in zip(NAMES, arguments[:10], strict=False):
                assert found[f"keyspaceamqp.{name}".encode()] == given
            if masks:
                assert found[b"keyspaceamqp.masks"] == format_masks(masks)
            client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    assert 10 < accepted < 140
    client.execute_command("MODULE", "LOAD", str(MODULE))
    settled(client, state="idle")
    sound(server, client)


def test_loadex(family: str, chance: random.Random, start_redis: StartRedis) -> None:
    """MODULE LOADEX with any named values."""
    server = start_redis(family, None)
    client = server.client(protocol=3)
    accepted = 0
    for _ in range(100):
        names = chance.sample(NAMES, chance.randrange(5))
        given = {name: value(chance, name) for name in names}
        if chance.random() < 0.1:
            given[chance.choice(["no", "port2", "\xff", ""])] = noise(chance)
        words: list[Any] = ["MODULE", "LOADEX", str(MODULE)]
        for name, text in given.items():
            words += ["CONFIG", f"keyspaceamqp.{name}", text]
        if chance.random() < 0.3:
            words += ["ARGS", "xe"]
        before = len(server.log())
        refusal = attempt(client, *words)
        said = server.log()[before:]
        fine = all(name in INDEX and fits(name, text) for name, text in given.items())
        assert (refusal is None) is fine, (words, refusal, said)
        assert loaded(client) is fine
        if fine:
            accepted += 1
            found = parameters(client)
            for name, text in given.items():
                assert found[f"keyspaceamqp.{name}".encode()] == text
            client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
        elif set(given) <= set(NAMES):
            reason = REASON.search(said)
            assert reason, (words, said)
            assert reason["name"] in given
            assert not fits(reason["name"], given[reason["name"]])
    assert 10 < accepted < 90
    client.execute_command("MODULE", "LOAD", str(MODULE))
    settled(client, state="idle")
    sound(server, client)


# ---- parameters ------------------------------------------------------------------


def test_set(family: str, chance: random.Random, start_redis: StartRedis) -> None:
    """CONFIG SET and KEYSPACEAMQP.CONFIG SET of several values: all or none."""
    server = start_redis(family, ["A", "127.0.0.1", free_port()])
    client = server.client(protocol=3)
    accepted = 0
    for number in range(250):
        names = chance.sample(NAMES, chance.randrange(1, 5))
        given = {name: value(chance, name) for name in names}
        wrong = [name for name, text in given.items() if not fits(name, text)]
        own = chance.random() < 0.5
        words: list[Any] = ["KEYSPACEAMQP.CONFIG" if own else "CONFIG", "SET"]
        for name, text in given.items():
            words += [name if own else f"keyspaceamqp.{name}", text]
        before = parameters(client)
        refusal = attempt(client, *words)
        after = parameters(client)
        assert (refusal is None) is (not wrong), (words, refusal)
        if refusal is None:
            accepted += 1
            changed = {f"keyspaceamqp.{name}".encode(): text for name, text in given.items()}
            assert after == before | changed
        else:
            assert after == before
            reason = REASON.search(refusal)
            assert reason, (words, refusal)
            assert reason["name"] in wrong
        client.set(f"key {number}", 1)
    assert 10 < accepted < 240
    client.execute_command("KEYSPACEAMQP.CONFIG", "SET", "fallback-size", "0")
    settled(client, queue_length=0)
    sound(server, client)


# ---- commands ----------------------------------------------------------------------


def arguments(chance: random.Random, command: str, words: list[bytes]) -> list[bytes]:
    """Arguments for a command: words that it knows, values of parameters, anything."""
    if command == "CONNECT":
        count = chance.randrange(15)
        given = [value(chance, name) for name in NAMES[1:10][:count]]
        return given + [noise(chance) for _ in range(count - 9)]
    given = [chance.choice(words)] if words and chance.random() < 0.9 else [noise(chance)]
    for _ in range(chance.choice([0, 0, 1, 1, 2, 3, 6])):
        kind = chance.random()
        if kind < 0.2:
            given.append(chance.choice(words) if words else b"LOCAL")
        elif kind < 0.7 and command == "CONFIG":
            name = chance.choice(NAMES)
            given += [name.upper().encode(), value(chance, name)]
        elif kind < 0.9:
            given.append(noise(chance))
        else:
            given.append(chance.choice([b"1", b"10000", b"*", b"h*", b"LOCAL"]))
    return given


LATE = "the handler did not answer in time"


def test_commands(family: str, chance: random.Random, start_redis: StartRedis) -> None:
    server = start_redis(family, ["A", "127.0.0.1", free_port()])
    client = server.client(protocol=3)
    refused = late = 0
    for number in range(300):
        spec = chance.choice(COMMANDS)
        words = [word.encode() for usage in spec.usage for word in re.findall("[A-Z]{3,}", usage)]
        given = arguments(chance, spec.name, words[1:]) if chance.random() < 0.95 else []
        before = parameters(client)
        refusal = attempt(client, f"KEYSPACEAMQP.{spec.name}", *given)
        if refusal is not None and LATE in refusal:
            late += 1  # the machine is busy, and the command may still be carried out
        elif refusal is not None:
            refused += 1
            assert REASON.search(refusal), (spec.name, given, refusal)
            assert len(refusal) < 5000 + sum(map(len, given)) * 4
            assert parameters(client) == before, (spec.name, given)
        client.set(f"key {number}", 1)
    assert 30 < refused < 270
    assert late < 10
    client.execute_command("KEYSPACEAMQP.CONFIG", "SET", "fallback-size", "0")
    settled(client, handler_errors=0, queue_length=0)
    sound(server, client)


# ---- masks -----------------------------------------------------------------------


def test_masks(
    family: str,
    chance: random.Random,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    """The events that arrive are those that a slow and simple matcher lets through, in order, each
    by the masks of its moment. KEYMASK TEST agrees."""
    client = start_redis(family, arguments_for(broker, mailbox, "$")).client()

    def some(alphabet: bytes, least: int, most: int) -> bytes:
        return bytes(chance.choices(alphabet, k=chance.randrange(least, most)))

    def some_masks() -> list[bytes]:
        return [
            chance.choice([b"", b"", b"!"]) + some(b"ab.^$*\0\n \\", 1, 7)
            for _ in range(chance.randrange(1, 5))
        ]

    expected = []
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(100):
            masks = some_masks()
            pipeline.config_set("keyspaceamqp.masks", format_masks(masks))
            for _ in range(20):
                key = some(b"ab*$\0\n \xff", 0, 9)
                pipeline.set(key, 1)
                expected += [key] * naive(masks, key)
        pipeline.execute()
    assert 0 < len(expected) < 2000
    settled(client, confirmed=len(expected))
    assert [message.event[2] for message in mailbox.receive()] == expected
    for _ in range(30):
        masks = some_masks()
        client.execute_command("KEYSPACEAMQP.KEYMASK", "SET", *masks)
        for _ in range(10):
            key = some(b"ab*$\0\n \xff", 0, 9)
            found = client.execute_command("KEYSPACEAMQP.KEYMASK", "TEST", key)
            assert found == naive(masks, key), (masks, key)
