"""The table of parameters, and values made of it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp import config as config_module
from keyspace_amqp.config import Config, format_masks, parse_databases, parse_masks
from keyspace_amqp.tables.parameters import INDEX, INT64_MAX, MASKS_BYTES, PARAMETERS, Kind

# The module's arguments in their order, with the documented defaults: positional arguments in a
# configuration file depend on both.
POSITIONAL = [
    (1, "events", "xe"),
    (2, "host", "127.0.0.1"),
    (3, "port", "5672"),
    (4, "username", "guest"),
    (5, "password", "guest"),
    (6, "heartbeat", "30"),
    (7, "exchange", "amq.direct"),
    (8, "routing-key", "redis_keyspace_events"),
    (9, "delivery-mode", "1"),
    (10, "fallback-size", "10000000"),
    (11, "masks", "ALL"),
]
DEFAULTS = [parameter.default.encode() for parameter in PARAMETERS]


def values(**changed: bytes) -> list[bytes]:
    """Raw values in the table's order: the defaults, except for those given."""
    return [changed.get(s.name.replace("-", "_"), s.default.encode()) for s in PARAMETERS]


def test_positions_and_defaults_are_the_documented_ones() -> None:
    rows = [(s.position, s.name, s.default) for s in PARAMETERS if s.position is not None]
    assert rows == POSITIONAL


def test_arguments_come_first_in_the_table() -> None:
    """The shim takes argument n for row n."""
    assert [s.position for s in PARAMETERS[: len(POSITIONAL)]] == [row[0] for row in POSITIONAL]
    assert all(s.position is None for s in PARAMETERS[len(POSITIONAL) :])


def test_names_are_unique_and_lower_case() -> None:
    names = [s.name for s in PARAMETERS]
    assert len(set(names)) == len(names)
    assert names == [name.lower() for name in names]
    assert list(INDEX) == names
    assert all(PARAMETERS[place].name == name for name, place in INDEX.items())


def test_only_these_are_secrets() -> None:
    assert [s.name for s in PARAMETERS if s.sensitive] == ["password", "url"]


def test_bounds_are_bounds() -> None:
    for parameter in PARAMETERS:
        assert parameter.minimum < parameter.maximum, parameter.name
        assert parameter.help
        assert parameter.accepted
        size = int(parameter.default) if parameter.kind is Kind.INTEGER else len(parameter.default)
        assert parameter.minimum <= size <= parameter.maximum, parameter.name


def test_bounds_are_those_of_the_protocol() -> None:
    bounds = {s.name: (s.minimum, s.maximum) for s in PARAMETERS}
    assert bounds["port"] == (1, 65535)
    assert bounds["exchange"] == bounds["routing-key"] == (0, 255)
    assert bounds["delivery-mode"] == (1, 2)
    assert bounds["heartbeat"][0] == 0
    assert bounds["fallback-size"] == (-INT64_MAX - 1, INT64_MAX)


def test_the_defaults_make_a_configuration() -> None:
    assert Config.from_values(DEFAULTS) == Config(
        events="xe",
        host="127.0.0.1",
        port=5672,
        username="guest",
        password="guest",
        heartbeat=30,
        exchange="amq.direct",
        routing_key="redis_keyspace_events",
        delivery_mode=1,
        fallback_size=10_000_000,
        masks=(b"ALL",),
        queue_limit=64 * 1024 * 1024,
        worker_nice=5,
        url="",
        vhost="/",
        password_file="",
        auth_mechanism="plain",
        tls=False,
        tls_ca_file="",
        tls_cert_file="",
        tls_key_file="",
        tls_server_name="",
        tls_verify=True,
        tcp_keepalive=60,
        node_name="",
        format="text",
        headers=False,
        value=0,
        mandatory=True,
        app_id="",
        message_type="",
        priority="",
        expiration="",
        deduplication_header=False,
        databases="ALL",
        confirm_timeout=60,
        fallback_memory=2,
        subkeys=0,
        outbox="off",
        cloudevents_prefix="cloudEvents:",
    )


def test_defaults_of_the_class_are_those_of_the_table() -> None:
    """They stand in the table alone; whoever starts from the defaults gets the same."""
    assert Config.from_values(DEFAULTS) == config_module.DEFAULTS
    fields = [parameter.field for parameter in PARAMETERS]
    assert list(Config.__annotations__) == fields
    assert not any(hasattr(Config, field) for field in fields)


def test_from_values_takes_every_value_to_its_place() -> None:
    config = Config.from_values([
        b"g$", b"broker.example", b"5671", b"app", b"pass word", b"0", b"ex", b"rk", b"2", b"-1",
        b"^a.*$ b\\x20c", b"2097152", b"19",
        b"amqp://h", b"v", b"/p", b"external", b"on", b"/ca", b"/cert", b"/key", b"name", b"off",
        b"0", b"node", b"json", b"on", b"7", b"off", b"app", b"type", b"9", b"60000", b"on",
        b"0,2-3", b"90", b"25", b"100", b"reply", b"ce-",
    ])  # fmt: skip
    assert config == Config(
        events="g$",
        host="broker.example",
        port=5671,
        username="app",
        password="pass word",
        heartbeat=0,
        exchange="ex",
        routing_key="rk",
        delivery_mode=2,
        fallback_size=-1,
        masks=(b"^a.*$", b"b c"),
        queue_limit=2097152,
        worker_nice=19,
        url="amqp://h",
        vhost="v",
        password_file="/p",
        auth_mechanism="external",
        tls=True,
        tls_ca_file="/ca",
        tls_cert_file="/cert",
        tls_key_file="/key",
        tls_server_name="name",
        tls_verify=False,
        tcp_keepalive=0,
        node_name="node",
        format="json",
        headers=True,
        value=7,
        mandatory=False,
        app_id="app",
        message_type="type",
        priority="9",
        expiration="60000",
        deduplication_header=True,
        databases="0,2-3",
        confirm_timeout=90,
        fallback_memory=25,
        subkeys=100,
        outbox="reply",
        cloudevents_prefix="ce-",
    )


def test_texts_keep_bytes_that_are_no_utf_8() -> None:
    config = Config.from_values(values(routing_key=b"caf\xe9", exchange="\u00fc".encode()))
    assert config.routing_key.encode("utf-8", "surrogateescape") == b"caf\xe9"
    assert config.exchange == "\u00fc"


def test_databases() -> None:
    assert parse_databases("ALL") is None
    for text in ("0,2-4", "4-2,0"):
        wanted = parse_databases(text)
        assert wanted is not None
        assert [db for db in range(6) if wanted(db)] == [0, 2, 3, 4]


def test_no_masks() -> None:
    assert Config.from_values(values(masks=b"")).masks == ()


@pytest.mark.parametrize("count", [len(PARAMETERS) - 1, len(PARAMETERS) + 1, 0])
def test_a_wrong_number_of_values_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="argument"):
        Config.from_values([b"1"] * count)


def test_a_password_is_not_shown() -> None:
    config = Config.from_values(values(password=b"hunter2", url=b"amqp://u:hunter2@h"))
    assert config.password == "hunter2"
    for text in (repr(config), str(config), f"{config}"):
        assert "hunter2" not in text
        assert "password=" not in text


# ---- the value of `masks` -----------------------------------------------------

mask = st.one_of(
    st.binary(min_size=1, max_size=12),
    # texts that look nearly like an escape
    st.lists(
        st.sampled_from([b"\\", b"x", b"2", b"0", b" ", b"\n", b"\x00", b"\xff", b"a"]), min_size=1
    ).map(b"".join),
)


@given(st.lists(mask, max_size=6))
@example([b"\\x20", b" ", b"\\", b"\\\\", b"\\\\x20"])
@example([b"\x85", b"\xa0", b"\t\r\n\x0b\x0c\x1c"])
def test_format_and_parse_are_inverse(masks: list[bytes]) -> None:
    assert parse_masks(format_masks(masks)) == tuple(masks)


@given(st.lists(mask, max_size=6))
def test_the_value_is_printable_and_has_one_blank_between_masks(masks: list[bytes]) -> None:
    value = format_masks(masks)
    assert all(32 <= byte < 127 for byte in value)
    assert value.count(b" ") == max(len(masks) - 1, 0)


def test_every_byte_in_a_mask() -> None:
    for byte in range(256):
        one = bytes([byte])
        assert parse_masks(format_masks([one, b"a" + one + b"b"])) == (one, b"a" + one + b"b")


def test_what_people_type() -> None:
    assert parse_masks(b"ALL") == (b"ALL",)
    assert parse_masks(b"") == ()
    assert parse_masks(b"  ^a.*$   b*c ") == (b"^a.*$", b"b*c")
    assert parse_masks(b"a\\x20b \\x00 \\xff\\xFF") == (b"a b", b"\x00", b"\xff\xff")
    assert parse_masks(b"a\\\\x20") == (b"a\\x20",)


def test_plain_masks_stay_as_they_are() -> None:
    masks = [b"^prefix.*$", b"a*b", b"user:{1}:[x]~!"]
    assert format_masks(masks) == b" ".join(masks)


def test_the_limit_of_masks_leaves_room_for_a_few() -> None:
    assert len(format_masks([b"\xff" * 1000] * 15)) < MASKS_BYTES
