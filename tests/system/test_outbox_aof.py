"""An append-only file that ends anywhere, as after a power cut: with the outbox `atomic`, it never
has an event without its write or a write without its event.

The file is cut at each byte, and repaired by redis-check-aof. Of each result, a server without the
module then loads a cut that led to it.
"""

from __future__ import annotations

import pathlib
import random
import shutil
import subprocess
from collections.abc import Sequence

import pytest
import redis

from keyspace_amqp.demo.servers import RedisServer, free_port, wait_for
from keyspace_amqp.tables.keys import KEY
from tests.fix_outbox import ATOMIC, Told, listed, replayed
from tests.fix_servers import StartRedis, arguments_for
from tests.servers import REDIS, kind_of, program

# Without `appendfsync no`, a write to the file may be put off while the disk is busy.
APPEND_ONLY = ["appendonly yes", "appendfsync no", "auto-aof-rewrite-percentage 0"]


def write(client: redis.Redis) -> None:
    """Change keys in all ways that make a transaction or several."""
    client.set("one", 1)
    client.mset({"two": 2, "three": 3})
    with client.pipeline(transaction=True) as pipeline:
        pipeline.set("four", 4).rpush("five", 1, 2)
        pipeline.execute_command("SELECT", 3)
        pipeline.set("six", 6)
        pipeline.execute_command("SELECT", 0)
        pipeline.execute()
    client.eval("redis.call('SET', 'seven', 7) redis.call('DEL', 'one')", 0)
    with client.pipeline(transaction=False) as pipeline:
        pipeline.set("two", "again").rename("two", "eight").delete("three").execute()
    # Keys whose time is over go when they are read, or by themselves.
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client.set("short", 1, px=1)
    wait_for(lambda: client.get("short") is None, 30)
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 1)
    client.set("shorter", 1, px=1)
    wait_for(lambda: [event.name for event in listed(client)].count(b"expired") == 2, 30)
    client.sadd("nine", 1)
    client.spop("nine")
    client.set("ten", 10)


class Case:
    """The append-only file of a server that was killed, and the events in its list."""

    def __init__(self, family: str, start_redis: StartRedis) -> None:
        server = start_redis(family, arguments_for(free_port(), events="A"), APPEND_ONLY)
        self.family = family
        self.folder = server.folder
        with server.client(single_connection_client=True) as client:
            write(client)
            # With `reply`, the last event is in the file behind its write.
            wait_for(lambda: listed(client)[-1].key == b"ten", 30)
            self.told = listed(client)
        server.kill()
        (self.path,) = (server.folder / "appendonlydir").glob("*.incr.aof")
        self.content = self.path.read_bytes()
        assert len(self.content) < 4096

    def repaired(self, cuts: Sequence[int]) -> list[int]:
        """Return the sizes that redis-check-aof gives to the file if it ends after so many
        bytes."""
        folder = self.folder / "cuts"
        folder.mkdir()
        for cut in cuts:
            (folder / f"{cut}").write_bytes(self.content[:cut])
        # The server's program, by another name.
        checker = self.folder / f"{kind_of(self.family)}-check-aof"
        checker.symlink_to(program(self.family))
        (self.folder / "yes").write_text("y\n")
        script = 'for file in cuts/*; do "$0" --fix $file <yes >/dev/null || exit 1; done'
        subprocess.run(["sh", "-c", script, checker], cwd=self.folder, check=True)
        fixed = [(folder / f"{cut}").read_bytes() for cut in cuts]
        assert all(map(self.content.startswith, fixed))
        return list(map(len, fixed))

    def results(self, step: int) -> dict[int, list[int]]:
        """Return the sizes after repairs of a file that is cut at each `step` bytes, each with the
        cuts that lead to it."""
        results: dict[int, list[int]] = {}
        cuts = range(len(self.content), 0, -step)
        for cut, size in zip(cuts, self.repaired(cuts), strict=True):
            results.setdefault(size, []).append(cut)
        return results

    def loaded(self, cut: int, folder: pathlib.Path) -> tuple[set[tuple[int, bytes]], list[Told]]:
        """Have a server without the module load the file, cut; return the keys and the events."""
        path = folder / "appendonlydir" / self.path.name
        shutil.copytree(self.path.parent, path.parent)
        path.write_bytes(self.content[:cut])
        # A replica removes no keys whose time is over.
        options = [*APPEND_ONLY, f"replicaof 127.0.0.1 {free_port()}"]
        server = RedisServer(folder, program(self.family), (), options)
        with server, server.client(single_connection_client=True) as client:
            told = listed(client)
            there = set()
            size = -int(client.exists(KEY))
            for db in (0, 3):
                client.execute_command("SELECT", db)
                size += client.dbsize()
                keys = sorted({event.key for event in self.told if event.db == db})
                # Unlike others, this command sees keys whose time is over.
                digests = client.execute_command("DEBUG", "DIGEST-VALUE", *keys)
                found = zip(keys, digests, strict=True)
                there |= {(db, key) for key, digest in found if digest.strip(b"0")}
        assert size == len(there), "there are keys without any event"
        return there, told


def differences(case: Case, tmp_path: pathlib.Path, step: int = 1) -> tuple[int, list[str]]:
    """Return the number of results of repairs, and those in which keys and events differ."""
    results = case.results(step)
    found = []
    for size, cuts in results.items():
        there, told = case.loaded(random.choice(cuts), tmp_path / f"{size}")
        assert told == case.told[: len(told)]
        if there != replayed(told):
            found.append(f"{size} of {len(case.content)} bytes: {there ^ replayed(told)}")
    print(f"{len(case.content)} bytes, {len(results)} results")
    assert max(results) == len(case.content)
    return len(results), found


@ATOMIC
def test_a_file_cut_at_each_byte(
    family: str, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    case = Case(family, start_redis)
    count, found = differences(case, tmp_path)
    assert not found
    # As many as there are transactions.
    assert count > 12


@pytest.mark.parametrize(("family", "outbox"), [(REDIS, "reply")])
def test_reply_is_no_transaction(
    family: str, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """Of the test itself: it notices a write without its event. With `reply` there are some."""
    case = Case(family, start_redis)
    assert differences(case, tmp_path, step=50)[1]
