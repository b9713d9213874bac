"""The shim's checks of parameters, and the list of masks that it writes."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp.config import format_masks, parse_masks
from keyspace_amqp.tables.advice import ADVICE, end_of_refusal
from keyspace_amqp.tables.parameters import (
    INDEX,
    INT64_MAX,
    MASK_BYTES,
    MASKS_BYTES,
    PARAMETERS,
    Kind,
    Parameter,
)
from keyspace_amqp.tools.loadmodule import checked
from tests.fix_shim import Shim

# REDISMODULE_NOTIFY_*, as in redismodule.h of Redis 7.0.
BITS = {
    "g": 1 << 2, "$": 1 << 3, "l": 1 << 4, "s": 1 << 5, "h": 1 << 6, "z": 1 << 7,
    "x": 1 << 8, "e": 1 << 9, "t": 1 << 10, "m": 1 << 11, "d": 1 << 13, "n": 1 << 14,
    "o": 1 << 15, "c": 1 << 16,  # of Redis 8.2
    "a": 1 << 23,  # of Redis 8.8
}  # fmt: skip
EVERY_CLASS = sum(BITS.values())
# The classes of a server's own `A`: all but misses and new keys.
ALIAS = EVERY_CLASS & ~(BITS["m"] | BITS["n"] | BITS["o"] | BITS["c"])
# As much room as in the module: no message may be longer.
ERROR_BYTES = 1024
# Redis shows this much of the message for a refused CONFIG SET (CONFIG_ERR_SIZE).
CUT = 256

Check = Callable[..., str | None]


@pytest.fixture(scope="session")
def check(shim: Shim) -> Check:
    """check(name, value): None, or the message of the refusal."""
    ffi, lib = shim.ffi, shim.lib

    def check(name: str, value: bytes, classes: int = EVERY_CLASS) -> str | None:
        error = ffi.new("char[]", b"\x01" * (ERROR_BYTES - 1))
        code = lib.parameters_check(INDEX[name], value, len(value), classes, error, ERROR_BYTES)
        if code == 0:
            return None
        assert code == -1
        message: str = ffi.string(error).decode("ascii")  # Redis' log takes no other bytes
        assert len(message) < ERROR_BYTES - 1
        assert message.isprintable()
        return message

    return check


# name: values that are accepted, values that are not
# fmt: off
VALUES: dict[str, tuple[list[bytes], list[bytes]]] = {
    "events": (
        [b"g", b"$", b"l", b"s", b"h", b"z", b"x", b"e", b"A", b"t", b"d", b"m", b"n",
         b"o", b"c", b"a", b"xe", b"g$lshzxe", b"A" * 64, b"xxx", b"Amn"],
        [b"", b"K", b"E", b"KEA", b"q", b"X", b"x e", b"xe ", b"x,e", b"\xff", b"x\n", b"0", b"?"],
    ),
    "host": (
        [b"h", b"127.0.0.1", b"::1", b"broker.example", b"h" * 255, b"a,b:5671", b"a:1,[::1]:65535",
         b"::1,b", b"fe80::1%eth0", b"[fe80::1%eth0]:5672", b"\xc3\xbc.example"],
        [b"", b"h" * 1025, b"a b", b"a:", b"a:0", b"a:65536", b"a,", b",a", b"a,,b", b"[::1",
         b"a:b", b"user@a", b"a/b", b"amqp://a"],
    ),
    "port": (
        [b"1", b"5672", b"65535", b"00080"],
        [b"", b"0", b"65536", b"-1", b"+1", b" 1", b"1 ", b"1\n", b"1.0", b"1e3", b"0x10", b"amqp",
         b"-", b"--1", b"1-1", b"1-", b"4294972968", b"18446744073709557288", b"\xb2"],
    ),
    "username": ([b"", b"guest", b"u" * 255, b"with blank", b"\xff\n"], [b"u" * 256]),
    "password": ([b"", b"guest", b"p" * 1024, b"with blank", b"\xff\n"], [b"p" * 1025]),
    "heartbeat": ([b"0", b"30", b"65535"], [b"", b"-1", b"65536", b"30s"]),
    "exchange": ([b"", b"amq.direct", b"e" * 255], [b"e" * 256]),
    "routing-key": (
        [b"", b"key", b"k" * 255, b"redis.{db}.{event}.{class}.{key}.{node}", b"{key:1}{key:99}",
         b"{key:*}", b"{{}}", b"{{key}}{db}", b"caf\xe9 \n"],
        [b"k" * 256, b"{", b"}", b"{}", b"{keys}", b"{key:0}", b"{key:100}", b"{key:}", b"{db}}",
         b"{{db}", b"{ db}"],
    ),
    "delivery-mode": ([b"1", b"2"], [b"", b"0", b"3", b"-1", b"12", b"persistent"]),
    "fallback-size": (
        [b"0", b"1", b"-1", b"%d" % INT64_MAX, b"%d" % (-INT64_MAX - 1)],
        [b"", b"%d" % (INT64_MAX + 1), b"%d" % (-INT64_MAX - 2), b"9" * 30, b"1" * 5000, b"10k"],
    ),
    "masks": (
        [b"", b"ALL", b"^a.*$ b*", b"a\\x20b", b"\\\\", b"\\x00\\xFF", b"\t a\n", b"\xff",
         b"m" * MASK_BYTES, b"\\x41" * MASK_BYTES, b"mm " * (MASKS_BYTES // 3),
         b"!a", b"a! !^tmp:", b"!!", b"\\x21a", b"!\\x20", b"!\\\\", b"!ALL"],
        [b"\\", b"a\\", b"\\n", b"\\x", b"\\x2", b"\\xg0", b"\\x0g", b"\\X20", b"\\\\\\",
         b"\\x 20", b"m" * (MASK_BYTES + 1), b"a " + b"m" * (MASK_BYTES + 1),
         b"m " * (MASKS_BYTES // 2 + 1),
         b"!", b"\\x21", b"a !", b"! a", b"a !\tb", b"\\x21\n", b"a \\x21"],
    ),
    "queue-limit": (
        [b"1048576", b"67108864", b"1099511627776"],
        [b"", b"0", b"1048575", b"1099511627777", b"-1", b"64mb"],
    ),
    "worker-nice": ([b"0", b"10", b"19"], [b"", b"-1", b"20"]),
    "url": (
        [b"", b"amqp://h", b"amqps://u:p%40%2f@h:5671/v%2fh", b"amqp://u@h,i:1,[::1]:2/",
         b"amqp://:p@h?heartbeat=7&verify=verify_none", b"amqp://h/v?auth_mechanism=external",
         b"amqps://h?cacertfile=/a/b.pem&certfile=c&keyfile=d&server_name_indication=e"],
        [b"amqp://", b"http://h", b"h", b"amqp://h/a/b", b"amqp://h:0", b"amqp://h?x=1",
         b"amqp://h?heartbeat", b"amqp://h?verify=no", b"amqp://a@b@h", b" amqp://h", b"amqp://h ",
         b"amqp://h" + b"h" * 2041],
    ),
    "vhost": ([b"", b"/", b"v" * 255, b"\xff\n"], [b"v" * 256]),
    "password-file": ([b"", b"/run/secrets/amqp", b"f" * 4096], [b"f" * 4097]),
    "auth-mechanism": ([b"plain", b"external"], [b"", b"PLAIN", b"plain ", b"amqplain"]),
    "tls": ([b"on", b"off"], [b"", b"yes", b"On", b"1", b"on\n", b"onoff"]),
    "tls-ca-file": ([b"", b"/etc/ca.pem", b"f" * 4096], [b"f" * 4097]),
    "tls-cert-file": ([b"", b"/etc/cert.pem", b"f" * 4096], [b"f" * 4097]),
    "tls-key-file": ([b"", b"/etc/key.pem", b"f" * 4096], [b"f" * 4097]),
    "tls-server-name": ([b"", b"broker.example", b"n" * 255], [b"n" * 256]),
    "tls-verify": ([b"on", b"off"], [b"", b"no"]),
    "tcp-keepalive": ([b"0", b"60", b"32767"], [b"", b"-1", b"32768", b"on"]),
    "node-name": ([b"", b"redis-1.example:6379", b"n" * 128], [b"n" * 129]),
    "format": (
        [b"text", b"json", b"cloudevents", b"cloudevents-structured"],
        [b"", b"JSON", b"xml", b"textjson", b"cloudevents-"],
    ),
    "headers": ([b"on", b"off"], [b"", b"all"]),
    "value": ([b"0", b"1", b"1048576"], [b"", b"-1", b"1048577", b"1kb"]),
    "mandatory": ([b"on", b"off"], [b"", b"true"]),
    "app-id": ([b"", b"a" * 255], [b"a" * 256]),
    "message-type": ([b"", b"t" * 255], [b"t" * 256]),
    "priority": ([b"", b"0", b"9", b"10", b"255"], [b"256", b"-1", b"00", b"1000", b"9 ", b"x"]),
    "expiration": (
        [b"", b"0", b"60000", b"999999999", b"3999999999"],
        [b"-1", b"4000000000", b"01", b"1s", b"10000000000", b" 1"],
    ),
    "deduplication-header": ([b"on", b"off"], [b"", b"x"]),
    "databases": (
        [b"ALL", b"0", b"0,1", b"0,2,8-15", b"999999999"],
        [b"", b"all", b"0,", b",0", b"-1", b"1-", b"0 1", b"ALL,0", b"1-2-3", b"9999999999"],
    ),
    "confirm-timeout": ([b"0", b"60", b"86400"], [b"", b"-1", b"86401", b"1s"]),
    "fallback-memory": ([b"0", b"2", b"100"], [b"", b"-1", b"101", b"5%", b"1.5"]),
    "subkeys": ([b"0", b"1", b"10000"], [b"", b"-1", b"10001", b"all"]),
    "outbox": ([b"off", b"reply", b"atomic"], [b"", b"on", b"Reply", b"atomic ", b"replyatomic"]),
    "cloudevents-prefix": (
        [b"cloudEvents:", b"cloudEvents_", b"ce-"],
        [b"", b"cloudevents:", b"ce_", b"ce-ce-", b"cloudEvents"],
    ),
}
# fmt: on


def test_every_parameter_is_in_the_table_of_this_test() -> None:
    assert list(VALUES) == [parameter.name for parameter in PARAMETERS]


@pytest.mark.parametrize("name", VALUES)
def test_accepted(check: Check, name: str) -> None:
    assert [(v[:40], check(name, v)) for v in VALUES[name][0] if check(name, v)] == []


@pytest.mark.parametrize("name", VALUES)
def test_refused(check: Check, name: str) -> None:
    assert [v[:40] for v in VALUES[name][1] if check(name, v) is None] == []


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_a_default_passes_its_own_check(check: Check, parameter: Parameter) -> None:
    assert check(parameter.name, parameter.default.encode()) is None


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_the_bounds_are_those_of_the_table(check: Check, parameter: Parameter) -> None:
    """The .so was made from this table, and its checks begin at these bounds."""
    s = parameter
    if s.kind is Kind.INTEGER:
        inside, outside = [s.minimum, s.maximum], [s.minimum - 1, s.maximum + 1]
        assert all(check(s.name, b"%d" % number) is None for number in inside)
        assert all(check(s.name, b"%d" % number) for number in outside)
    elif not s.pattern:
        longest = b"x " * (s.maximum // 2) if s.kind is Kind.MASKS else b"x" * s.maximum
        assert check(s.name, longest) is None
        assert check(s.name, b"x" * s.minimum) is None
        if s.minimum:
            assert check(s.name, b"x" * (s.minimum - 1))


@pytest.mark.parametrize(
    "name",
    [s.name for s in PARAMETERS if s.kind is not Kind.INTEGER],
)
def test_a_text_longer_than_the_table_allows_is_refused(check: Check, name: str) -> None:
    letter = b"g" if name == "events" else b"x"
    assert check(name, letter * (PARAMETERS[INDEX[name]].maximum + 1))


integers = pytest.mark.parametrize("name", [s.name for s in PARAMETERS if s.kind is Kind.INTEGER])
any_texts = [s.name for s in PARAMETERS if s.kind is Kind.TEXT and not s.pattern]
texts = pytest.mark.parametrize("name", any_texts)
patterns = pytest.mark.parametrize("name", [s.name for s in PARAMETERS if s.pattern])


@integers
@given(number=st.one_of(st.integers(-(2**65), 2**65), st.integers(-2, 70_000)))
def test_any_number(check: Check, name: str, number: int) -> None:
    parameter = PARAMETERS[INDEX[name]]
    inside = parameter.minimum <= number <= parameter.maximum
    assert (check(name, b"%d" % number) is None) is inside


@integers
@given(value=st.text("-+0123 .x\n", max_size=24))
def test_what_looks_like_a_number(check: Check, name: str, value: str) -> None:
    """A number passes if the handler's int() reads it and it is within the bounds."""
    parameter = PARAMETERS[INDEX[name]]
    number = int(value) if re.fullmatch("-?[0-9]+", value) and len(value) < 24 else None
    inside = number is not None and parameter.minimum <= number <= parameter.maximum
    assert (check(name, value.encode()) is None) is inside


@texts
@given(value=st.binary(max_size=300).map(lambda value: value.replace(b"\0", b"\n")))
def test_a_text_is_any_bytes_of_the_right_number(check: Check, name: str, value: bytes) -> None:
    parameter = PARAMETERS[INDEX[name]]
    inside = parameter.minimum <= len(value) <= parameter.maximum
    assert (check(name, value) is None) is inside


@patterns
@given(data=st.data())
def test_a_pattern_means_the_same_to_posix_and_to_python(
    check: Check, name: str, data: st.DataObject
) -> None:
    """The shim checks with POSIX, the command line with Python."""
    parameter = PARAMETERS[INDEX[name]]
    pieces = [v for values in VALUES[name] for v in values if len(v) < 60]
    drawn = st.lists(
        st.one_of(st.sampled_from(pieces), st.sampled_from([b"{", b"}", b":", b",", b"/", b"\\"])),
        max_size=4,
    )
    value = b"".join(data.draw(st.one_of(drawn, st.lists(st.binary(max_size=9)))))
    value = value.replace(b"\0", b"?")
    fits = parameter.minimum <= len(value) <= parameter.maximum
    text = value.decode("utf-8", "surrogateescape")
    fits = fits and re.fullmatch(parameter.pattern, text) is not None
    assert (check(name, value) is None) is fits


near_escapes = st.lists(
    st.sampled_from([b"\\", b"x", b"2", b"F", b"g", b" ", b"\n", b"\xff", b"*", b"!", b"\\x21"]),
    max_size=10,
).map(b"".join)


@given(value=near_escapes)
@example(b"\\\\x2")
@example(b"\\x2")
def test_masks_are_refused_for_lone_backslashes_and_signs_only(check: Check, value: bytes) -> None:
    fine = re.fullmatch(rb"([^\\]|\\\\|\\x[0-9a-fA-F]{2})*", value) is not None
    fine = fine and b"!" not in parse_masks(value)
    assert (check("masks", value) is None) is fine
    if fine:
        assert b"" not in parse_masks(value)


# ---- what a refusal says ------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
def test_a_refusal_names_the_parameter_the_value_and_what_is_accepted(
    check: Check, name: str
) -> None:
    parameter = PARAMETERS[INDEX[name]]
    for value in VALUES[name][1]:
        message = check(name, value)
        assert message is not None
        assert message.startswith(f"{name}: ")
        text = value.decode("utf-8", "surrogateescape")
        if name == "events":  # the letters are those of the server
            assert "; give letters of A g " in message
        elif len(value) > parameter.maximum:
            assert message.endswith(f"; give {parameter.accepted}")
        else:  # the same that the command line says
            assert message.endswith(f" is not accepted{end_of_refusal(parameter, text)}") or (
                parameter.kind in (Kind.MASKS, Kind.INTEGER)
                and message.endswith(f"; give {parameter.accepted}")
            )
        assert len(message) < CUT
        if parameter.sensitive:
            continue
        escaped = [chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in value]
        shown = "".join(escaped)
        if len(shown) > 64:
            end = max(n for n in range(65) if len("".join(escaped[:n])) <= 64)
            shown = "".join(escaped[:end]) + "..."
        assert f" '{shown}' is not accepted" in message


# A value that people give, and what the refusal has to say of it.
MISTAKES = [
    (
        "events",
        "KEA",
        "K, E, S, T, I and V choose channels of pub/sub; leave them out; give letter",
    ),
    ("events", "Ex", "leave them out"),
    ("events", "xq", "no event class has the letter q; give letters of A g $"),
    ("events", "x e", "nothing between them"),
    ("events", "x\n", "it has a byte that is no letter"),
    ("host", "amqp://u:secret@h/", "give a URL in the parameter url"),
    ("host", "guest@h", "give a URL in the parameter url"),
    ("host", "h/shop", "in the parameter vhost"),
    ("host", "a, b", "it has a blank"),
    ("url", "amqp://u:p#w@h/v", "it has a #; write %23"),
    ("url", "amqp://u:p w@h/v", "it has a blank; write %20"),
    ("url", "amqp://u:p@w@h/v", "has an @; write %40"),
    ("url", "amqp://u:p@w@h,i/v", "has an @; write %40"),
    ("url", "amqp://u:p@a,u:p@b/v", "stand once, before the first server"),
    ("url", "amqp://u:p,w@h/v", "has a comma; write %2C"),
    ("url", "amqp://u:p/w@h/v", "the password has a /; write %2F"),
    ("url", "amqp://u:p?w@h/v", "the password has a ?; write %3F"),
    ("url", "amqp://u:p?w=1@h/v", "the password has a ?; write %3F"),
    ("url", "amqp://u:p@h//", "the virtual host has a /; write %2F. The virtual host / is /%2F"),
    ("url", "amqp://h/a/b", "the virtual host has a /; write %2F"),
    ("url", "amqp://h//?heartbeat=1", "the virtual host has a /"),
    ("url", "http://h", "it begins with amqp:// or amqps://"),
    ("url", "h:5672", "it begins with amqp:// or amqps://"),
    ("url", "amqp:/h", "it begins with amqp:// or amqps://"),
    ("url", "amqp://", "stand servers"),
    ("url", "amqp://u:p@/v", "stand servers"),
    ("url", "amqp://h:0/v", "(:1 to :65535)"),
    ("url", "amqp://u:p@h:70000?heartbeat=1", "(:1 to :65535)"),
    ("url", "amqp://::1/v", "[an IPv6 address]"),
    ("url", "amqp://a,,b", "stand servers"),
    ("url", "amqp://h?connection_timeout=5", "the module has no connection_timeout; leave it out"),
    ("url", "amqps://h/v?verify=verify_peer&channel_max=9", "the module has no channel_max;"),
    ("url", "amqp://h/v?fail_if_no_peer_cert=true", "has no fail_if_no_peer_cert;"),
    ("url", "amqp://h/v?blocked_connection_timeout=1", "has no blocked_connection_timeout;"),
    ("url", "amqp://h?heart_beat=1", "behind the ? may stand"),
    ("url", "amqp://h?heartbeat=1&secret", "behind the ? may stand"),
    ("url", "amqp://h?", "behind the ? may stand"),
    ("url", "amqp://h?heartbeat=1?verify=x", ": heartbeat is a number of seconds"),
    ("url", "amqp://h?heartbeat=5s", ": heartbeat is a number of seconds"),
    ("url", "amqp://h?verify=verify_none&heartbeat=", ": heartbeat is a number of seconds"),
    ("url", "amqp://h?heartbeat=5&heartbeat=100000", ": heartbeat is a number of seconds"),
    ("url", "amqp://h?auth_mechanism=EXTERNAL", ": auth_mechanism is plain or external"),
    ("url", "amqp://h/v?heartbeat=5&verify=none", ": verify is verify_peer or verify_none"),
    ("url", "amqp://h@i/v?verify=", ": verify is verify_peer or verify_none"),
]


@pytest.mark.parametrize(("name", "value", "said"), MISTAKES)
def test_advice(check: Check, name: str, value: str, said: str) -> None:
    """Which character or name is wrong, and how to write it; on the command line too."""
    message = check(name, value.encode())
    assert message is not None
    assert said in message
    assert len(message) < CUT
    assert "secret" not in message
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        checked(PARAMETERS[INDEX[name]], value)
    if value not in ("xq", "x\n"):  # the command line knows no server
        assert said.partition("; give letter")[0] in str(refused.value)


def test_each_advice_is_given() -> None:
    """Every row of the table is the answer to one of the mistakes, except for those that name
    things in the query of a URL."""
    said = {end_of_refusal(PARAMETERS[INDEX[name]], value) for name, value, _ in MISTAKES}
    for advice in ADVICE:
        if "the module has no" not in advice.text:
            assert any(f": {advice.text}" in end for end in said), advice


@pytest.mark.parametrize("start", ["", "u:p@", "["])
@pytest.mark.parametrize("piece", [":", "a:", "a,", "a@b,", "a/", "a?", "h:1,", "?ssl=1&"])
def test_advice_takes_no_time(check: Check, start: str, piece: str) -> None:
    """Of the processor, whatever the value: the shim looks for it on Redis' main thread."""
    parameter = PARAMETERS[INDEX["url"]]
    value = f"amqp://{start}{piece * parameter.maximum}"[: parameter.maximum]
    begin = time.process_time()
    check("url", value.encode())
    end_of_refusal(parameter, value)
    assert time.process_time() - begin < 2


@given(
    data=st.data(),
    name=st.sampled_from(sorted({advice.parameter for advice in ADVICE} - {"events"})),
)
def test_shim_and_command_line_give_the_same_advice(
    check: Check, data: st.DataObject, name: str
) -> None:
    parameter = PARAMETERS[INDEX[name]]
    pieces = [value for other, value, _ in MISTAKES if other == name]
    pieces += [*"@:/?#,&=[] ", "amqp://", "%2F", "é", "u:p", "h:5672", "verify=", "ssl=1"]
    value = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=5)))
    message = check(name, value.encode())
    if message is not None and len(value.encode()) >= parameter.minimum:
        assert message.endswith(f" is not accepted{end_of_refusal(parameter, value)}")


# None of these is in the words of a message.
@given(
    secret=st.one_of(
        st.text("@#%&~^!", min_size=1025, max_size=1030),
        st.text("@#%&~^!", min_size=1, max_size=40).map(lambda s: s + "\0" + s),
    )
)
def test_a_secret_is_not_shown_in_any_part(check: Check, secret: str) -> None:
    message = check("password", secret.encode())
    assert message is not None
    assert message.startswith("password: ")
    assert PARAMETERS[INDEX["password"]].accepted in message
    assert not set("@#%&~^!") & set(message)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("position", ["only", "first", "inside", "last"])
def test_a_nul_byte_is_refused(check: Check, name: str, position: str) -> None:
    """Redis keeps the values of its configs as C strings."""
    good = PARAMETERS[INDEX[name]].default.encode()
    value = {
        "only": b"\0",
        "first": b"\0" + good,
        "inside": good[:1] + b"\0" + good,
        "last": good + b"\0",
    }[position]
    message = check(name, value)
    assert message is not None
    assert message.startswith(f"{name}: ")
    assert "NUL" in message


@pytest.mark.parametrize("name", VALUES)
def test_huge_values_are_refused_in_few_words(check: Check, name: str) -> None:
    for byte in (b"1", b"\xff", b"\0", b"\\"):
        message = check(name, byte * (4 * 1024 * 1024))
        assert message is not None
        assert len(message) < CUT


@given(capacity=st.integers(1, 300), value=st.binary(min_size=256, max_size=300))
def test_a_message_keeps_to_its_room(shim: Shim, capacity: int, value: bytes) -> None:
    ffi = shim.ffi
    room = ffi.new("char[]", b"\x7f" * 400)
    code = shim.lib.parameters_check(INDEX["port"], value, len(value), 0, room, capacity)
    assert code == -1
    assert bytes(ffi.buffer(room, 400))[capacity:] == b"\x7f" * (400 - capacity)
    assert len(ffi.string(room)) < capacity


# ---- event classes ------------------------------------------------------------


@pytest.mark.parametrize("letter", BITS)
def test_the_bit_of_a_letter(shim: Shim, letter: str) -> None:
    assert shim.lib.parameters_classes(letter.encode(), 1) == BITS[letter]


def test_the_bits_of_a(shim: Shim) -> None:
    assert shim.lib.parameters_classes(b"A", 1) == ALIAS
    documented = sum(BITS[letter] for letter in "g$lshzxe")
    assert ALIAS & documented == documented


@given(letters=st.lists(st.sampled_from([*BITS, "A"]), max_size=20))
def test_letters_add_up(shim: Shim, letters: list[str]) -> None:
    expected = 0
    for letter in letters:
        expected |= ALIAS if letter == "A" else BITS[letter]
    value = "".join(letters).encode()
    assert shim.lib.parameters_classes(value, len(value)) == expected


@pytest.mark.parametrize("letter", BITS)
def test_a_class_that_the_server_lacks(check: Check, letter: str) -> None:
    without = EVERY_CLASS & ~BITS[letter]
    message = check("events", b"A" + letter.encode(), without)
    assert message is not None
    assert f"'A{letter}'" in message
    assert f"this server has no class {letter}" in message
    others = "".join(other for other in BITS if other != letter).encode()
    assert check("events", others, without) is None


def test_a_is_accepted_whatever_it_means_to_the_server(check: Check) -> None:
    assert check("events", b"A", sum(BITS[letter] for letter in "g$lshzxe")) is None
    assert check("events", b"A", BITS["n"]) is None


def test_the_error_names_the_letters_of_this_server(check: Check) -> None:
    old = "g $ l s h z x e t d m n"
    for classes, letters in ((EVERY_CLASS, old[:-4] + " a m n o c"),
                             (0x7FFF, old), (BITS["g"], "g"), (0, "")):  # fmt: skip
        for value in (b"K", b""):
            message = check("events", value, classes)
            assert message is not None
            assert message.endswith(f"give letters of {f'A {letters}'.strip()}")


def test_a_letter_of_no_class_is_told_from_one_the_server_lacks(check: Check) -> None:
    message = check("events", b"xeq", 0x3FC)
    assert message is not None
    assert "no event class has the letter q" in message


# ---- the list of masks --------------------------------------------------------


@given(
    masks=st.lists(
        st.one_of(st.binary(min_size=1, max_size=12), near_escapes.filter(bool)).filter(
            lambda mask: mask != b"!"
        )
    ),
    spare=st.integers(0, 20),
)
@example([bytes([byte]) for byte in range(256) if byte != ord("!")], 0)
def test_appended_masks_come_back(shim: Shim, check: Check, masks: list[bytes], spare: int) -> None:
    ffi, lib = shim.ffi, shim.lib
    capacity = sum(4 * len(mask) + 2 for mask in masks) + 1 + spare
    room = ffi.new("char[]", b"\x7f" * (capacity + 8))
    used = 0
    for mask in masks:
        used = lib.parameters_append_mask(room, used, capacity, mask, len(mask))
        assert 0 < used < capacity
        assert ffi.buffer(room)[used] == b"\0"
    assert bytes(ffi.buffer(room))[capacity : capacity + 8] == b"\x7f" * 8
    value = bytes(ffi.buffer(room, used))
    assert check("masks", value) is None
    assert parse_masks(value) == tuple(masks)
    assert value == format_masks(masks), "KEYMASK and the module's arguments write it alike"


@given(masks=st.lists(st.binary(min_size=1, max_size=9), min_size=1), capacity=st.integers(0, 60))
def test_too_little_room_is_told_and_nothing_is_written(
    shim: Shim, masks: list[bytes], capacity: int
) -> None:
    ffi, lib = shim.ffi, shim.lib
    room = ffi.new("char[]", b"\x7f" * 80)
    used = 0
    for mask in masks:
        before = bytes(ffi.buffer(room))
        now = lib.parameters_append_mask(room, used, capacity, mask, len(mask))
        assert bytes(ffi.buffer(room))[capacity:] == before[capacity:]
        if now == 0:
            assert bytes(ffi.buffer(room)) == before
            assert used + 4 * len(mask) + 2 > capacity
            break
        used = now
