"""The module with a pika that is not as it knows it."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from keyspace_amqp.broker.bulk import SLOW_PIKA
from keyspace_amqp.demo.servers import RabbitServer, wait_for
from tests.fix_faults import Load, delivered
from tests.fix_servers import (
    Mailbox,
    StartRedis,
    arguments_for,
    handler_copy,
    settled,
    site_packages,
    stats,
)
from tests.servers import REDIS


def with_own_pika(environment: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Copy the package and pika into a new environment. Return the path of the module, and the
    folder of pika."""
    path = handler_copy(environment)
    link = site_packages(environment) / "pika"
    source = link.resolve()
    link.unlink()
    shutil.copytree(source, link, ignore=shutil.ignore_patterns("__pycache__"))
    return path, link


def renamed(folder: pathlib.Path, name: str) -> None:
    """Change a copy of pika: a part that is not public gets another name."""
    changed = 0
    for path in folder.rglob("*.py"):
        text = path.read_text()
        changed += text.count(name)
        path.write_text(text.replace(name, name + "_of_late"))
    assert changed > 1


def test_a_pika_of_another_form(
    own_broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """Messages go by its public interface, and the log says so once. Nothing is lost when the
    broker is away."""
    path, copy = with_own_pika(tmp_path / "environment")
    renamed(copy, "_output_marshaled_frames")
    mailbox = Mailbox(own_broker).keep()
    server = start_redis(REDIS, None, start=False)
    server.module = [str(path), *map(str, arguments_for(own_broker, mailbox, "$"))]
    server.start()
    client = server.client()
    wait_for(lambda: server.log().count(SLOW_PIKA) == 1)
    with Load(server, batch=100, pause=0.02) as load:
        load.more(1000)
        own_broker.kill()
        load.more(1000)
        own_broker.start()
        load.more(1000)
    settled(client, fallback_length=0, confirmed=len(load.keys))
    delivered(client, mailbox, load.keys, repeated=10**6)
    assert stats(client)["reconnects"] >= 1
    assert server.log().count(SLOW_PIKA) == 1


@pytest.mark.parametrize("file", ["__init__.py", "connection.py"])
def test_a_pika_that_is_broken(
    file: str, own_broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """The load looks only whether there is a pika. Events wait in the list, the reason is in the
    log and in STATS, and nothing is lost when pika is repaired while Redis runs."""
    path, copy = with_own_pika(tmp_path / "environment")
    whole = (copy / file).read_text()
    (copy / file).write_text("import nothing_of_this_name\n")
    mailbox = Mailbox(own_broker).keep()
    server = start_redis(REDIS, None, start=False)
    server.module = [str(path), *map(str, arguments_for(own_broker, mailbox, "$"))]
    server.start()
    client = server.client()
    why = "cannot import pika: ModuleNotFoundError: No module named 'nothing_of_this_name'"
    wait_for(lambda: "no connection to RabbitMQ is possible: " in server.log())
    assert f"{tmp_path}/environment/bin/python" in server.log()
    assert why in server.log()
    keys = [b"key:%d" % number for number in range(1000)]
    client.mset(dict.fromkeys(keys, 1))
    settled(client, fallback_length=len(keys), state="disconnected")
    assert why in stats(client)["last_error"]
    (copy / file).write_text(whole)
    settled(client, fallback_length=0, confirmed=len(keys))
    delivered(client, mailbox, keys)
