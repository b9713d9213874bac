"""The demo of a cluster: six nodes, one queue, and everything that can move, moves.

It starts three primaries with a replica each and a RabbitMQ, shows events of all
primaries in one queue and commands that reach all nodes, kills the broker under a
stream of writes, then a primary, moves all slots of another one to a third, starts
the broker again, and compares what was written with what arrived.

Never imported inside Redis.
"""

from __future__ import annotations

import itertools
import pathlib
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.text import Text

from ..cluster.slots import SLOTS
from . import show
from .servers import RedisCluster, RedisServer, ServerError
from .show import shown

BEFORE_OUTAGE = 1.0
# Writes with the broker away: before a primary dies, and after its replica has taken over.
OUTAGE = 2.0
MASK = "^" + show.READING


class Task(show.Thread):
    """A call that takes its time."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call

    def work(self) -> None:
        self._call()


class ClusterDemo(show.Show):
    """One run."""

    def __init__(self, stage: show.Stage) -> None:
        super().__init__(stage, "$")
        names = (stage.folder / f"node-{number}" for number in itertools.count(1))
        self._cluster = RedisCluster(
            lambda options: RedisServer(
                next(names), module=[str(stage.module), *self._arguments], options=options
            )
        )
        stage.stack.callback(self._end_nodes)
        self._clients: dict[int, Any] = {node.port: node.client() for node in self.servers()}
        self._events: list[bytes] = []
        self._wrong: dict[str, object] = {}

    def run(self) -> bool:
        """All of it; whether nothing was lost or unexpected."""
        self._start()
        self._show_events()
        self._show_spread()
        self._show_outage()
        return self._show_books()

    def servers(self) -> Sequence[RedisServer]:
        return self._cluster.nodes

    def hints(self) -> str:
        cli = f"redis-cli -c -p {self._taker.port}"
        return (
            f"Redis     {cli}\n\nTry this in another terminal:\n\n"
            f"  {cli} SET {show.READING}hello world\n"
            f"  {cli} -3 KEYSPACEAMQP.CLUSTER\n"
            f"  {cli} -3 KEYSPACEAMQP.STATS CLUSTER"
        )

    # ---- the parts of the show ---------------------------------------------

    def _start(self) -> None:
        self._title("1. A private Redis Cluster and a private RabbitMQ")
        self._say("Six Redis nodes and RabbitMQ start now, on free ports of loopback.")
        start = time.monotonic()
        self._broker.spawn()
        self._cluster.start()
        self._open_queue()
        self._first, self._giver, self._taker = self._cluster.primaries()
        self._heir = self._cluster.replica_of(self._first)
        self._wait(lambda: len(self._nodes()) == len(self.servers()), "the nodes know each other")
        self._say(
            f"Ready after {time.monotonic() - start:.1f} s. In the redis.conf of each node:\n"
        )
        self._say_loadmodule()
        self._say("$: events of strings; 2: persistent messages. One node is told to connect:\n")
        self._spread("KEYSPACEAMQP.CONNECT")
        self._wait(
            lambda: [row["state"] for row in self._nodes()].count(b"connected") == 3,
            "the primaries are connected",
        )
        self._say("\nAll nodes have heard of it. Replicas stay silent. KEYSPACEAMQP.CLUSTER:\n")
        table = show.plain_table()
        columns = ("address", "role", "state", "fallback_length", "config_version")
        for column in columns:
            table.add_column(column)
        for row in self._nodes():
            table.add_row(*(Text(_text(row[column])) for column in columns))
        self._console.print(table)

    def _show_events(self) -> None:
        self._title("2. Events of three primaries in one queue")
        client: Any = self._cluster.client()
        messages = self._consumer.messages
        table = show.plain_table()
        for column, style in {
            "Redis command": "",
            "primary": "cyan",
            "message body": "green",
        }.items():
            table.add_column(column, style=style)
        table.add_column("message_id", style="dim")
        table.add_column("after", justify="right", no_wrap=True)
        keys: dict[int, str] = {}
        for number in itertools.count(1):
            key = f"user:{number}"
            keys.setdefault(client.get_node_from_key(key).port, key)
            if len(keys) == 3:
                break
        for port, key in keys.items():
            start = time.perf_counter()
            client.set(key, "Ada")
            self._events.append(b"0\nset\n" + key.encode())
            self._wait(lambda: len(messages) >= len(self._events), "a message for each event")
            message = messages[-1]
            table.add_row(
                Text(f"SET {key} Ada"),
                f":{port}",
                Text(shown(message.body)),
                Text(message.id),
                f"{(message.at - start) * 1000:.1f} ms",
            )
        self._console.print(table)
        self._unwanted = list(keys.values())
        self._say("\nThe first half of a message_id tells which node it is from.")

    def _show_spread(self) -> None:
        self._title("3. A command to one node reaches all")
        self._spread("KEYSPACEAMQP.KEYMASK", "SET", MASK)
        self._command(self._giver, "KEYSPACEAMQP.KEYMASK", "LIST")
        client = self._cluster.client()
        for key in self._unwanted:
            client.set(key, "Bob")
        self._say(f"\nFrom here on {', '.join(self._unwanted)} and the like cause no messages.")

    def _show_outage(self) -> None:
        self._title("4. The broker dies, a primary dies, slots move, the broker comes back")
        self._say(
            f"A client now sets {show.WRITES_PER_SECOND} keys a second, all over the slots.\n"
        )
        self._columns = [self._first, self._heir, self._giver, self._taker]
        self._began = time.monotonic()
        self._writers: list[show.Writer] = []
        self._write()
        self._say("                            in the list of", "bold")
        ports = "".join(f"{f':{node.port}':>9}" for node in self._columns)
        self._say(f"   time       SETs  received{ports}", "bold")
        self._rows(self._after(BEFORE_OUTAGE))
        self._kill_broker()
        self._rows(self._after(OUTAGE))
        self._stop_writing()
        self._fail_over()
        self._write()
        self._rows(self._after(OUTAGE))
        self._move_slots()
        self._start_broker()
        self._rows(self._drained)
        self._happens("the lists are empty: all of it was confirmed", "green")
        self._rows(self._after(1.0))
        self._stop_writing()

    def _fail_over(self) -> None:
        """A primary dies, when its replica has what it holds: a replica that takes over
        finds what replication has brought it, and no more."""
        first, heir = self._clients[self._first.port], self._clients[self._heir.port]

        def replicated() -> bool:
            self._dead = show.numbers(first)
            length = heir.execute_command("KEYSPACEAMQP.FALLBACK", "LEN", "LOCAL")
            return bool(
                length == self._dead["fallback_length"]
                and not self._dead["queue_length"]
                and not self._dead["in_flight"]
            )

        self._happens("the writes stop until the replica has the list", "yellow")
        self._wait(replicated, "the replica has the list")
        primaries = (self._first, self._giver, self._taker)
        self._wrong["a primary had no list"] = not all(map(self._length, primaries))
        self._first.kill()
        self._happens(f"kill -9 the primary :{self._first.port}", "red")
        self._rows(lambda: show.numbers(heir)["fallback_length"] == self._dead["fallback_length"])
        self._cluster.wait_settled()
        self._happens(
            f"its replica :{self._heir.port} is the primary, and has the list; the writes go on",
            "green",
        )

    def _move_slots(self) -> None:
        """All slots of one primary go to another, and its list with the last of them."""
        node, target = self._giver, self._taker
        words = (
            *("reshard", f"127.0.0.1:{target.port}", "--cluster-from", self._cluster.id_of(node)),
            *("--cluster-to", self._cluster.id_of(target)),
            *("--cluster-slots", str(SLOTS), "--cluster-yes"),
        )
        self._happens(
            f"all slots of :{node.port} move to :{target.port}, by this command:", "yellow"
        )
        self._console.print(
            Text(f"redis-cli --cluster {shlex.join(words)}", "cyan"), soft_wrap=True
        )
        task = self._thread(Task(lambda: self._cluster.cli(*words)))
        self._rows(lambda: not task.is_alive())
        self._check_threads()
        self._cluster.wait_settled()
        self._rows(lambda: self._length(node) == 0)
        self._happens(f"done; :{target.port} has two lists now:", "green")
        found = self._command(target, "--scan", "--pattern", "keyspaceamqp:*")
        self._wrong["the list did not move with its slot"] = len(found.split()) != 2

    def _show_books(self) -> bool:
        self._title("5. The books")
        asked = self._clients[self._taker.port]
        self._wait(lambda: show.at_rest(show.numbers(asked, "CLUSTER")), "everything is delivered")
        self._fence_consumer()
        for writer in self._writers:
            self._events += writer.events()
        result = show.compare(self._events, [m.body for m in self._consumer.messages])
        table = show.books_table()
        self._add_comparison(table, len(self._events), "caused by what was written", result)
        self._add_repeated(table)
        self._console.print(table)

        total = show.numbers(asked, "CLUSTER")
        running = {
            node.port: show.numbers(self._clients[node.port])
            for node in self.servers()
            if node.running
        }
        self._say_nodes(running, total)
        matched = self._dead["events_matched"] + total["events_matched"]
        reasons = {
            f"{result.lost.total()} lost": result.lost,
            f"{result.unexpected.total()} unexpected": result.unexpected,
            "the modules did not count each event": matched != len(self._events),
            "the numbers of a node do not balance": any(
                map(show.balance, [self._dead, *running.values()])
            ),
            "STATS CLUSTER is not the sum of the nodes": any(
                total[name] != sum(numbers[name] for numbers in running.values())
                for name in (*show.CAME, *show.WENT)
            ),
            "something was dropped": total["dropped"] or self._dead["dropped"],
            "STATS CLUSTER did not ask all nodes that run": total["nodes"] != len(running),
            **self._wrong,
        }
        return self._judge(reasons, "Nothing lost, by broker, primary or move.")

    def _say_nodes(
        self, running: Mapping[int, Mapping[str, Any]], total: Mapping[str, Any]
    ) -> None:
        """The books of each node that was a primary, and of all together."""
        first, heir, giver, taker = (node.port for node in self._columns)
        missing = ", ".join(_text(item) for item in total["missing"])
        lines: list[tuple[str, Mapping[str, Any], str]] = [
            (f":{first}", self._dead, "before it was killed"),
            (f":{heir}", running[heir], "found that one's list"),
            (f":{giver}", running[giver], "its list moved away"),
            (f":{taker}", running[taker], "and came here"),
            ("STATS CLUSTER", total, f"{total['nodes']} nodes of {total['of']}"),
        ]
        table = show.plain_table()
        table.add_column("node")
        columns = (*show.CAME, "confirmed", "dropped", "waiting")
        for column in columns:
            table.add_column(column, justify="right")
        table.add_column("", no_wrap=True)
        for name, numbers, remark in lines:
            waiting = sum(numbers[name] for name in show.WENT[2:])
            figures = {**numbers, "waiting": waiting}
            table.add_row(name, *(f"{figures[column]:,}" for column in columns), remark)
        self._say(
            "\nOn each line, events_matched + fallback_found = confirmed + dropped + waiting:\n"
        )
        self._console.print(table)
        self._say(
            f"\nMissing: {missing}. STATS CLUSTER sums over the nodes that answer. "
            "The counters of a node end with it: what the dead primary had confirmed, nobody else "
            "knows. What waited in its list, its replica has found."
        )

    # ---- help for these ----------------------------------------------------

    def _spread(self, *words: str) -> None:
        """Shows a command to one node, which is for all."""
        reply = self._command(self._first, *words)
        if f'"nodes" => (integer) {len(self.servers())}' not in reply:
            self._wrong[f"{words[0]} did not reach all nodes"] = True

    def _command(self, node: RedisServer, *words: str) -> str:
        """Shows what redis-cli says to a command; its output."""
        line = ["redis-cli", "-3", "-p", str(node.port), *words]
        self._say(f"$ {shlex.join(line)}", "cyan")
        # As in a terminal.
        done = subprocess.run(
            [*line[:1], "--no-raw", *line[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=show.PATIENCE,
            check=False,
        )
        if done.returncode != 0:
            raise ServerError(f"{shlex.join(line)}: {done.stdout}{done.stderr}")
        self._say(done.stdout.rstrip())
        return done.stdout

    def _nodes(self) -> list[dict[str, Any]]:
        """The reply of KEYSPACEAMQP.CLUSTER."""
        reply = self._clients[self._taker.port].execute_command("KEYSPACEAMQP.CLUSTER")
        return [show.named(row) for row in reply]

    def _write(self) -> None:
        """Starts a writer where the last one has ended."""
        first = sum(len(writer.answers) for writer in self._writers)
        self._writers.append(self._thread(show.Writer(self._cluster.client(), first)))

    def _stop_writing(self) -> None:
        self._writers[-1].end()
        self._check_threads()

    def _length(self, node: RedisServer) -> int:
        return int(show.numbers(self._clients[node.port])["fallback_length"])

    def _drained(self) -> bool:
        serving = (self._heir, self._taker)
        states = [show.numbers(self._clients[node.port])["state"] for node in serving]
        return states == [b"connected"] * 2 and not any(map(self._length, self._columns[1:]))

    def _row(self) -> Text:
        answers = sum(len(writer.answers) for writer in self._writers)
        line = Text(f"{answers:7,}  {len(self._consumer.messages):8,}")
        for node in self._columns:
            line.append(f"{self._shown_list(node):>9}")
        return line

    def _shown_list(self, node: RedisServer) -> str:
        if not node.running:
            return "dead"
        numbers = show.numbers(self._clients[node.port])
        return "replica" if numbers["state"] == b"replica" else f"{numbers['fallback_length']:,}"

    def _end_nodes(self) -> None:
        for node in self.servers():
            node.kill()  # its data goes with the folder


def _text(value: bytes | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def run(module: pathlib.Path, *, keep: bool = False) -> int:
    """Runs the demo with the module at this path; the exit code."""
    return show.perform(ClusterDemo, module, "demo-cluster", keep=keep)
