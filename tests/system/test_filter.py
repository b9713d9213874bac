"""Masks and databases on real servers: in force at once, and before a value is read."""

from __future__ import annotations

from typing import Any

import redis

from keyspace_amqp.demo.books import balance
from keyspace_amqp.demo.servers import RabbitServer, free_port
from tests.fix_faults import Load, Notifications, delivered
from tests.fix_servers import EVERY_FAMILY, Mailbox, StartRedis, arguments_for, settled, stats

ROUNDS = 60


@EVERY_FAMILY
def test_new_masks_are_in_force_for_the_next_command(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Between two commands of a pipeline, while another client writes. The other client's events
    pass always."""
    server = start_redis(family, arguments_for(broker, mailbox, "$"))
    client = server.client()
    expected: set[bytes] = set()

    def write(pipeline: Any, name: str, *, passes: bool) -> None:
        pipeline.set(name, 1)
        if passes:
            expected.add(name.encode())

    with (
        Notifications(server) as notifications,
        Load(server, batch=20, pause=0.01) as load,
        client.pipeline(transaction=False) as pipeline,
    ):
        for number in range(ROUNDS):
            for kind, other in (("even", "odd"), ("odd", "even")):
                pipeline.execute_command(
                    "CONFIG", "SET", "keyspaceamqp.masks", f"^load: ^{kind} !:no$"
                )
                write(pipeline, f"{kind}:{number}:1", passes=True)
                write(pipeline, f"{other}:{number}:2", passes=False)
                write(pipeline, f"{kind}:{number}:no", passes=False)
            pipeline.execute_command("CONFIG", "SET", "keyspaceamqp.databases", "0,3")
            for db in (0, 2, 3):
                pipeline.execute_command("SELECT", db)
                write(pipeline, f"even:{number}:db{db}", passes=False)
                write(pipeline, f"odd:{number}:db{db}", passes=db != 2)
            pipeline.execute_command("SELECT", 0)
            pipeline.execute_command("CONFIG", "SET", "keyspaceamqp.databases", "ALL")
            if number % 10 == 0:
                pipeline.execute()
        pipeline.execute()
        load.more(100)
    own = [key for _, _, key in notifications.events if key in expected or key[:5] == b"load:"]
    numbers = delivered(client, mailbox, own)
    assert numbers["events_matched"] == len(own) == len(expected) + len(load.keys)
    # Not the module's own events: a slow broker may have had events stored in the list.
    assert numbers["events_seen"] == sum(name == b"set" for _, name, _ in notifications.events)


def test_keymask_is_in_force_when_it_answers(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    server = start_redis(arguments=arguments_for(broker, mailbox, "$", masks=("^load:",)))
    client = server.client()
    expected = set()
    with (
        Notifications(server) as notifications,
        Load(server, batch=20, pause=0.01) as load,
        # Another connection, so that the writes do not wait for the commands by themselves.
        server.client() as writer,
    ):
        for number in range(ROUNDS):
            name = f"k{number}"
            writer.set(f"{name}:before", 1)
            client.execute_command("KEYSPACEAMQP.KEYMASK", "ADD", f"^{name}:")
            writer.set(f"{name}:during", 1)
            expected.add(f"{name}:during".encode())
            client.execute_command("KEYSPACEAMQP.KEYMASK", "DEL", f"^{name}:")
            writer.set(f"{name}:after", 1)
        load.more(100)
    own = [key for _, _, key in notifications.events if key in expected or key[:5] == b"load:"]
    numbers = delivered(client, mailbox, own)
    assert numbers["events_matched"] == len(own)


def calls(client: redis.Redis, command: str) -> int:
    return int(client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def test_no_value_is_read_of_an_event_that_does_not_pass(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The first short strings after a load are read by a command, which the server counts."""
    options = ["keyspaceamqp.value 100", "keyspaceamqp.format json"]
    server = start_redis(family, arguments_for(broker, mailbox, "$", masks=("^yes",)), options)
    client = server.client()
    for number in range(5):
        client.set(f"no:{number}", "short")
    assert calls(client, "getex") == 0
    client.set("yes", "short")
    settled(client, confirmed=1, events_matched=1)
    assert calls(client, "getex") == 1
    client.config_set("keyspaceamqp.masks", "ALL")
    client.config_set("keyspaceamqp.databases", "1")
    client.set("yes", "short")
    assert calls(client, "getex") == 1


def test_the_books_after_a_reset_with_a_full_queue(start_redis: StartRedis) -> None:
    """With the list off and no broker, events that pass wait or are lost, and no others."""
    arguments = arguments_for(free_port(), events="$", size=-1, masks=("^k",))
    client = start_redis(arguments=arguments, options=["keyspaceamqp.queue-limit 1048576"]).client()
    script = """
        for number = 1, tonumber(ARGV[1]) do
            redis.call('SET', 'k' .. string.rep('x', 200), '')
            redis.call('SET', 'no mask lets this through', '')
        end"""

    def at_rest() -> dict[str, Any]:
        """Return STATS when the handler has looked at all events: between two commands it has a
        turn in which it drops those that are too many."""
        for _ in range(2):
            client.execute_command("KEYSPACEAMQP.KEYMASK", "LIST")
        return settled(client)

    for matched in (1000, 10_000, 100_000):
        before = at_rest()
        client.eval(script, 0, matched)
        numbers = at_rest()
        assert numbers["events_matched"] == before["events_matched"] + matched
        assert numbers["events_seen"] == before["events_seen"] + 2 * matched
        assert balance(numbers) == 0
        client.execute_command("KEYSPACEAMQP.STATS", "RESET")
        after = at_rest()
        assert after["events_matched"] == after["queue_length"] == numbers["queue_length"]
        assert (balance(after), after["dropped"], after["events_seen"]) == (0, 0, 0)
    assert numbers["dropped_queue_full"] > 0
    assert stats(client)["queue_length"] > 1000
