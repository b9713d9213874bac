"""Slots, keys, and the text of CLUSTER NODES."""

from __future__ import annotations

import binascii

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp.cluster.slots import SLOTS, key_of, slot_of
from keyspace_amqp.cluster.topology import read_topology
from keyspace_amqp.tables.keys import KEY


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 0x31C3),  # the specification's example
        (b"", 0),
        (b"foo", 12182),
        (b"{foo}", 12182),
        (b"a{foo}b", 12182),
        (b"{foo}{bar}", 12182),  # the first { only
        (b"}{foo}", 12182),
        (b"{user1000}.following", 3443),
        (b"{user1000}.followers", 3443),
    ],
)
def test_slots_that_are_known(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


@pytest.mark.parametrize("key", [b"foo{}{bar}", b"{}", b"foo{bar", b"foo}bar{", b"{"])
def test_without_a_tag_the_whole_key_counts(key: bytes) -> None:
    assert slot_of(key) == binascii.crc_hqx(key, 0) % SLOTS
    assert slot_of(key) != slot_of(b"bar")


def test_a_tag_may_have_braces_in_it() -> None:
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")


def test_every_slot_has_one_key() -> None:
    keys = [key_of(slot) for slot in range(SLOTS)]
    assert [slot_of(key) for key in keys] == list(range(SLOTS))
    assert len(set(keys)) == SLOTS
    assert all(key.startswith(b"keyspaceamqp:{") and key.endswith(b"}:fallback") for key in keys)
    assert key_of(13907) == KEY


# ---- CLUSTER NODES -------------------------------------------------------------------

A, B, C, D = (letter * 40 for letter in "abcd")

# As the servers answered, with ids and ports made short.
REDIS_7_0 = f"""\
{C} 127.0.0.1:7002@17002 slave {A} 0 1795391951097 1 connected
{D} 127.0.0.1:1@2 handshake - 0 0 0 disconnected
{A} 127.0.0.1:7000@17000 myself,master - 0 1795391950000 1 connected 0-5460 5462 16000-16383 \
[93->-{B}] [5461-<-{B}]
{B} 127.0.0.1:7001@17001,node1.example master - 0 1795391950896 0 connected 5461 5463-15999
"""
REDIS_8_2 = f"""\
{B} 127.0.0.1:7001@17001,node1.example master,fail? - 1795391963169 1795391962663 2 disconnected \
5461 5463-15999
{A} 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-5460 5462 16000-16383 [93->-{B}] \
[5461-<-{B}]
{C} 127.0.0.1:7002@17002 slave {A} 0 1795391963776 1 connected
"""
VALKEY_8_1 = f"""\
{A} 127.0.0.1:7000@17000 master - 0 1795391974610 0 connected 0-5460 5462 16000-16383
{C} 127.0.0.1:7002@17002 myself,slave {A} 0 0 0 connected
{B} 127.0.0.1:7001@17001,node1.example,shard-id={D} master,fail - 0 0 1 connected 5461 5463-15999 \
[93-<-{A}]
"""
MINE = {*range(5461), 5462, *range(16000, 16384)}


def test_the_answer_of_redis_7_0() -> None:
    topology = read_topology(REDIS_7_0)
    assert topology.myself == A
    assert topology.served == MINE
    assert topology.migrating == {93}
    # A node in handshake is no member yet.
    assert {
        i: (node.address, node.primary, node.failing) for i, node in topology.nodes.items()
    } == {
        A: ("127.0.0.1:7000", True, False),
        B: ("127.0.0.1:7001", True, False),
        C: ("127.0.0.1:7002", False, False),
    }


def test_the_answer_of_redis_8_2() -> None:
    """A node that does not answer this one (fail?) is not waited for."""
    topology = read_topology(REDIS_8_2)
    assert (topology.served, topology.migrating) == (MINE, {93})
    assert [i for i, node in topology.nodes.items() if node.failing] == [B]


def test_the_answer_of_valkey_8_1_to_a_replica() -> None:
    topology = read_topology(VALKEY_8_1)
    assert topology.myself == C
    assert (topology.served, topology.migrating) == (set(), set())
    assert [node.id for node in topology.nodes.values() if node.failing] == [B]
    assert [node.id for node in topology.nodes.values() if not node.primary] == [C]


@pytest.mark.parametrize(
    ("word", "address"),
    [
        (":7000@17000", ":7000"),  # a node that does not know its own address yet
        ("127.0.0.1:7000@17000", "127.0.0.1:7000"),
        ("::1:7000@17000", "::1:7000"),
        ("fd00::5:7000@17000,a.example", "fd00::5:7000"),
        ("10.0.0.1:7000@17000,,tls-port=7001,shard-id=" + D, "10.0.0.1:7000"),
        ("10.0.0.1:7000", "10.0.0.1:7000"),
    ],
)
def test_forms_of_addresses(word: str, address: str) -> None:
    topology = read_topology(f"{A} {word} myself,master - 0 0 0 connected\n")
    assert topology.nodes[A].address == address
    assert topology.served == set()


def test_a_node_without_an_address_fails() -> None:
    text = f"{B} :0@0 master,noaddr - 0 0 0 disconnected\n" + REDIS_7_0
    assert read_topology(text).nodes[B].failing is False  # the line that comes last
    assert read_topology(text.replace(B, D, 1)).nodes[D].failing


WHOLE = f"{A} 127.0.0.1:7000@17000 myself,master - 0 0 0 connected"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "OK",
        "ERR This instance has cluster support disabled",
        f"{A} 127.0.0.1:7000@17000 master - 0 0 0 connected 0-16383",  # nobody is myself
        f"{A} 127.0.0.1:7000@17000 myself,master - 0 0 0",
        f"{WHOLE} x",
        f"{WHOLE} 1-x",
        f"{WHOLE} [x->-{B}]",
        f"{WHOLE} 0-16384",
        f"{WHOLE} 16384",
        f"{WHOLE} 5-3",
        f"{WHOLE} 0-99999999999999999",
        f"{WHOLE} -1",
        f"{WHOLE} 0-5 [16384->-{B}]",
        f"{WHOLE} 0-5\nmore",
    ],
)
def test_what_is_no_answer(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_topology(text)


@given(st.one_of(st.text(), st.text(alphabet=f"{A[:2]} 0159-[]<>@:,\nmyself")))
def test_any_text_is_read_or_refused(text: str) -> None:
    for given_text in (text, WHOLE + " " + text):
        try:
            topology = read_topology(given_text)
        except ValueError:
            continue
        assert topology.served <= frozenset(range(SLOTS))
        assert topology.migrating <= frozenset(range(SLOTS))
        assert topology.myself in topology.nodes


def test_a_replica_inherits_the_slots_of_its_primary() -> None:
    lines = [
        f"{'a' * 40} 127.0.0.1:1@2 master - 0 0 1 connected 0-99 200",
        f"{'b' * 40} 127.0.0.1:2@3 myself,slave {'a' * 40} 0 0 1 connected",
        f"{'c' * 40} 127.0.0.1:3@4 master - 0 0 2 connected 100-199",
    ]
    topology = read_topology("\n".join(lines))
    assert topology.served == set()
    assert topology.inherited == {*range(100), 200}
    lines[1] = f"{'b' * 40} 127.0.0.1:2@3 myself,master - 0 0 1 connected 300"
    assert read_topology("\n".join(lines)).inherited == set()
