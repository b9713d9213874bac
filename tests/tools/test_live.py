"""The view of `keyspace-amqp status` on a terminal: its graphs, its size, and real servers that
answer, hang, go away and come back."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
import signal
import time
import types
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from keyspace_amqp import cli
from keyspace_amqp.demo.servers import RabbitServer, wait_for
from keyspace_amqp.tables.stats import CONFIRM_BOUNDS, Stat
from keyspace_amqp.tools import graphs, nodes, status
from keyspace_amqp.tools.graphs import History, chart
from keyspace_amqp.tools.looks import Look, Rates, latency, latency_text, look
from tests.fix_servers import ROOT, Mailbox, StartRedis, arguments_for, settled, stats
from tests.fix_tools import SOON, Running, url
from tests.tools import picture

# Widths of terminals: the table has all columns, some, and few.
WIDE, USUAL, NARROW = 220, 80, 40


def console(width: int, height: int = 24) -> Console:
    return Console(width=width, height=height, file=io.StringIO(), _environ={})


def lines_of(shown: Any, width: int, height: int = 24) -> list[str]:
    """What a terminal of this size shows, before it is cut at its last line."""
    screen = console(width, height)
    screen.print(shown)
    assert isinstance(screen.file, io.StringIO)
    return [line.rstrip() for line in screen.file.getvalue().splitlines()]


def node(port: int, error: str = "", **numbers: Any) -> Look:
    """A look at a node with these numbers, and 0 for all others."""
    texts = {"state": "connected", "broker": "rabbit.example:5672", "outbox": "off"}
    rest = {stat.name.lower(): 0 for stat in Stat}
    rates = Rates(10, 20, (0, 100, *[0] * 10))
    return Look(f"10.0.0.1:{port}", "primary", texts | rest | numbers, error, 0, rates)


# ---- rates and latency ---------------------------------------------------------------


def test_latency() -> None:
    """99 of 100 events: not one less."""

    def of(*times: int) -> int | None:
        return latency([Rates(0, 0, times)])

    assert of(0, 0, 0) is None
    assert latency([]) is latency([Rates(1, 1, ())]) is None
    assert of(99, 0, 1) == 0
    assert of(98, 0, 2) == 2
    assert of(0, 5, 0) == 1
    assert latency([Rates(0, 0, (99, 0)), Rates(0, 0, (0, 99))]) == 1
    assert [latency_text(place) for place in (None, 0, 9, 10, 11)] == [
        *("", "1 ms", "1 s", "5 s", "> 5 s")
    ]


def test_counters_that_begin_anew(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """After STATS RESET there is no rate, rather than a wrong one."""
    server = start_redis(arguments=arguments_for(broker, mailbox))
    with server.client() as client:
        group = [nodes.Node("a", client)]
        first = look(group)
        for _ in range(50):
            client.set("k", 1)
        settled(client, confirmed=50)
        second = look(group, first)
        assert first[0].rates is None
        assert second[0].rates is not None
        seconds = second[0].at - first[0].at
        assert second[0].rates.matched * seconds == pytest.approx(50)
        client.execute_command("KEYSPACEAMQP.STATS", "RESET")
        wait_for(lambda: stats(client)["events_matched"] == 0, SOON)
        assert look(group, second)[0].rates is None


# ---- graphs --------------------------------------------------------------------------


def test_chart() -> None:
    assert chart([0, 0.01, 0.125, 0.5, 1, None], 1) == [" ▁▁▄█."]
    assert chart([0, 0.01, 0.5, 0.75, 1, None], 2) == ["   ▄█ ", " ▁███."]
    assert chart([0, 0.01, 0.5, 1, None], 2, " #") == ["   # ", " ###."]


def added(history: History, now: float, *looks: Look) -> None:
    history.add(looks, now)


def drawn(history: History, width: int = 100, height: int = 5) -> list[str]:
    """The lines of the graphs, without their names."""
    shown = lines_of(history.graphs(width, height), width)
    return [line.ljust(width)[16:width] for line in shown]


def test_a_column_is_the_highest_value_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks fill the time from the look before on; the newest column is at the right."""
    monkeypatch.setattr(graphs, "SPAN", 84.0)  # one second is a column at a width of 100
    history = History(0.25)
    for at, length in ((0.1, 4), (0.4, 8), (1.1, 1), (4.1, 2)):
        added(history, at, node(1, fallback_length=length))
    events, confirms, waiting, late, axis = drawn(history)
    assert waiting.strip() == "█▂▂▂▂"
    assert events.rstrip() == confirms.rstrip() == " " * 79 + "█████"
    assert len(late.rstrip()) == 84
    assert axis.strip() == "84 s ago" + " " * 73 + "now"
    added(history, 5.1, Look("10.0.0.1:1", error="no answer in time"))
    assert [line[-2:] for line in drawn(history)[:4]] == ["█.", "█.", "▂.", late[-2] + "."]
    added(history, 6.1, Look("10.0.0.1:1", error="no answer in time"))
    assert [line.rstrip()[-1] for line in drawn(history)[:4]] == ["."] * 4


def test_nodes_are_added_up() -> None:
    history = History(1)
    added(history, 0, node(1, fallback_length=1000), node(2, fallback_length=234))
    shown = lines_of(history.graphs(80, 17), 80)
    expected = {1: "20 /s", 2: "max 20 /s", 5: "40 /s", 9: "1,234", 13: "2 ms"}
    for number, words in expected.items():
        assert shown[number][:16].strip() == words


@pytest.mark.parametrize("interval", [0.05, 1, 60])
@pytest.mark.parametrize("width", [1, 16, 17, NARROW, USUAL, 5000])
def test_graphs_of_any_size(width: int, interval: float) -> None:
    """After any time, and nothing is kept without a bound."""
    history = History(interval)
    for number in range(3000):
        added(history, number * interval, node(1, fallback_length=number))
    began = time.process_time()
    shown = lines_of(history.graphs(width, 50), width)
    assert max(map(len, shown)) <= width
    assert time.process_time() - began < 5
    assert len(history._points) == graphs._POINTS


# ---- the table -----------------------------------------------------------------------


def table_lines(looks: Sequence[Look], width: int, **more: Any) -> list[str]:
    given = {"live": True, "clustered": True} | more
    return lines_of(status.table(looks, console(width), **given), width)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("width", range(32, WIDE, 3))
def test_a_number_is_shown_whole_or_not_at_all(width: int, live: bool) -> None:
    """However narrow the window is, and the list and losses always are."""
    big = {stat.name.lower(): 1_234_567 + stat for stat in Stat}
    shown = table_lines([node(1, **big), node(2)], width, live=live)
    assert max(map(len, shown)) <= width
    text = "\n".join(shown)
    assert "…" not in text
    for stat in (Stat.FALLBACK_LENGTH, Stat.DROPPED):
        assert len(re.findall(rf"\b{big[stat.name.lower()]:,}(?!\S)", text)) == 2, text
    known = {f"{number:,}" for number in [0, 10, 20, 40, *big.values()]}
    for number in re.findall(r"(?<!\S)[\d,]+(?= |$)", re.sub(r"\d+ of \d+|\d+ ms", "", text)):
        assert number in known or len(number) < 6, (number, text)


def test_errors_have_a_column_or_lines() -> None:
    looks = [node(1, "a"), node(2, "b"), node(3, "a"), node(4)]
    assert any(re.search("10.0.0.1:3 .* a$", line) for line in table_lines(looks, WIDE))
    assert table_lines(looks, USUAL)[-2:] == ["10.0.0.1:1, 10.0.0.1:3: a", "10.0.0.1:2: b"]


@pytest.mark.parametrize("width", [WIDE, USUAL, NARROW])
@pytest.mark.parametrize("height", [10, 24])
def test_nodes_with_trouble_come_first(width: int, height: int) -> None:
    """If the terminal has no room for all nodes of a large cluster."""
    looks = [node(port) for port in range(100, 200)]
    looks[70] = Look(looks[70].address, error="refused")
    looks[80] = node(180, dropped=1)
    group: Any = types.SimpleNamespace(nodes=[], clustered=True)
    view = status.View(group, 1)
    view._looks = looks
    view._history.add(looks, 0)
    shown = lines_of(view.shown(console(width, height)), width, height)
    assert len(shown) <= max(height, 13)
    text = "\n".join(shown)
    assert "99 of 100 answer" in text
    assert re.search(r"^\d+ more nodes$", text, re.MULTILINE)
    assert re.search("^10.0.0.1:170 .*no answer", text, re.MULTILINE)
    if height > 10:
        assert re.search("^10.0.0.1:180 .* 1$", text, re.MULTILINE)
        assert "refused" in text


# ---- on real servers -----------------------------------------------------------------


def frame(out: str) -> str:
    """What the terminal shows: the last whole picture of it."""
    last = out.rpartition("\x1b[H")[2]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last).replace("\r\n", "\n")


@pytest.mark.parametrize("size", [(WIDE, 50), (USUAL, 24), (NARROW, 24), (NARROW, 8)])
def test_what_is_shown(
    size: tuple[int, int],
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
    tmp_path: pathlib.Path,
) -> None:
    """On a terminal of each size, what STATS says."""
    server = start_redis(arguments=arguments_for(broker, mailbox))
    words = ("status", "--live", "--interval", "0.1", "--redis", url(server))
    with server.client() as client:
        client.execute_command("KEYSPACEAMQP.CONNECT")
        for number in range(1234):
            client.set("k", number)
        settled(client, confirmed=1234)
        client.execute_command("KEYSPACEAMQP.DISCONNECT")
        for number in range(567):
            client.set("k", number)
        settled(client, fallback_length=567, queue_length=0, in_flight=0)
        with Running(tmp_path, *words, terminal=True, size=size) as tool:

            def shows(tool: Running) -> str:
                """The whole picture, if it has the values."""
                text = frame(tool.out)
                values = [f" {stats(client)[name]:,}" for name in names]
                row = next((x for x in text.splitlines() if x.startswith("127.0.0.1:")), "")
                there = all(re.search(rf"{value}\b", row) for value in [*values, " disconnected"])
                return text if there and "Ctrl-C ends" in text else ""

            names = ["fallback_length", "dropped"]
            names += ["events_matched", "confirmed"] if size[0] == WIDE else []
            text = tool.waits(shows, "the table says what STATS says")
            if size[1] > 8:
                assert re.search(r"^list +\S*.*\n567 ", text, re.MULTILINE), text
            else:
                assert re.search(r"^list 567 ", text, re.MULTILINE), text
            assert "█" in text
            assert "1 of 1 answer  Ctrl-C ends" in text
            assert all(len(line) <= size[0] for line in text.splitlines())
            assert len(text.splitlines()) <= size[1]
        client.execute_command("KEYSPACEAMQP.CONNECT")


def test_the_graphs_have_what_stats_counts(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes: their rates over their times are the growth of their counters. One hangs, goes
    away and comes back; the other one is seen all the time."""
    servers = [start_redis(arguments=arguments_for(broker, mailbox)) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for server in servers]
        asked = [nodes.open_client(url(server), 4) for server in servers]
        members = [
            nodes.Node(f"node-{name}", stack.enter_context(client))
            for name, client in zip("ab", asked, strict=True)
        ]
        group: Any = types.SimpleNamespace(nodes=members, clustered=True, renew=lambda client: None)
        view = status.View(group, 0.01)
        points = view._history._points
        seen = {"matched": 0.0, "confirmed": 0.0}

        def text() -> str:
            return "\n".join(lines_of(view.shown(console(USUAL)), USUAL))

        def look() -> None:
            """Adds what the rates of this look mean in events. A slow machine asks the two nodes
            at different times, so each node has its own."""
            before = view._looks
            view.look()
            rated = [(b.at, n.at, n.rates) for b, n in zip(before, view._looks, strict=True)]
            for name in seen:
                rates = [(now - then, getattr(r, name)) for then, now, r in rated if r is not None]
                assert getattr(points[-1], name) == pytest.approx(sum(r for _, r in rates))
                seen[name] += sum(seconds * rate for seconds, rate in rates)

        view.look()
        for number in range(300):
            clients[number % 2].set("k", number)
            if number % 100 == 99:
                look()
        for client in clients:
            settled(client, confirmed=150)
        look()
        assert seen == pytest.approx({"matched": 300, "confirmed": 300})
        times = [sum(stats(c)[f"confirm_ms_le_{b}"] for b in CONFIRM_BOUNDS) for c in clients]
        assert sum(times) <= 300
        assert any(p.latency is not None for p in points)

        servers[1].signal(signal.SIGSTOP)
        view.look()
        clients[0].set("k", 1)
        view.look()
        assert "1 of 2 answer" in text()
        assert re.search("^node-b +no answer", text(), re.MULTILINE)
        assert "no answer in time" in text()
        assert points[-1].matched is not None
        servers[1].signal(signal.SIGCONT)
        servers[1].kill()
        view.look()
        assert "Connection refused" in text()
        servers[1].start()
        view.look()
        view.look()
        assert "2 of 2 answer" in text()
        assert re.search("^node-b +primary +idle", text(), re.MULTILINE)
        assert points[-1].matched == points[-1].confirmed == 0


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_its_end(end: signal.Signals, start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    """At any moment, also while a server hangs: soon, without a traceback, the terminal is as
    before, and what was shown last stays."""
    server = start_redis(arguments=["A", "127.0.0.1", "1"])
    words = ("status", "--interval", "0.05", "--redis", url(server))
    with Running(tmp_path, *words, terminal=True, size=(USUAL, 24)) as tool:
        tool.waits(lambda tool: "1 of 1 answer" in frame(tool.out), "a view")
        server.signal(signal.SIGSTOP)
        try:
            tool.waits(lambda tool: "0 of 1 answer" in frame(tool.out), "no answer")
            tool.process.send_signal(end)
            assert tool.process.wait(SOON) == 128 + end
        finally:
            server.signal(signal.SIGCONT)
        assert tool.err == ""
        assert is_as_before(tool.out)
        assert "no answer" in tool.out.partition(LEAVES)[2]


# Escape sequences: the screen of its own, and the cursor.
ENTERS, LEAVES = "\x1b[?1049h", "\x1b[?1049l"
HIDES, SHOWS = "\x1b[?25l", "\x1b[?25h"


def is_as_before(out: str) -> bool:
    """True if the terminal has its usual screen, and a cursor."""
    same = out.count(ENTERS) == out.count(LEAVES) > 0
    return same and out.rindex(SHOWS) > out.rindex(HIDES)


class Interrupts(io.StringIO):
    """A terminal whose user presses Ctrl-C at the moment at which it gets this text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._text in text:
            self._text = "-" * 100  # once
            signal.raise_signal(signal.SIGINT)
        return written


@pytest.mark.parametrize("moment", [ENTERS, HIDES, "what", SHOWS, LEAVES])
def test_an_end_while_the_screen_changes(moment: str) -> None:
    """The screen changes as a whole first."""
    looks = iter([lambda: None, lambda: None, lambda: signal.raise_signal(signal.SIGINT)])
    view: Any = types.SimpleNamespace(
        look=lambda: next(looks)(), shown=lambda console: "what is shown"
    )
    out = Interrupts(moment)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(each) for each in signals]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    try:
        with pytest.raises(KeyboardInterrupt):
            status._live(Console(file=out, force_terminal=True, width=80, height=24), view, 0.01)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, status._BETWEEN_LOOKS)
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
    assert is_as_before(out.getvalue())
    assert "what is shown" in out.getvalue().partition(LEAVES)[2] or moment in (ENTERS, HIDES)


@pytest.mark.parametrize("interval", ["1e-9", "3600"])
def test_ctrl_z(interval: str, start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    """The shell has its terminal as it was, and `fg` shows the view again. It may wait long, or a
    look may take longer than the interval."""
    server = start_redis(arguments=["A", "127.0.0.1", "1"])
    words = ("status", "--interval", interval, "--redis", url(server))
    with Running(tmp_path, *words, terminal=True, size=(USUAL, 24)) as tool:
        state = pathlib.Path(f"/proc/{tool.process.pid}/stat")
        for _ in range(2):
            tool.waits(lambda tool: "1 of 1 answer" in frame(tool.out), "a view")
            assert not is_as_before(tool.out)
            tool.process.send_signal(signal.SIGTSTP)
            wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", SOON)
            assert is_as_before(tool.out)
            entered = tool.out.count(ENTERS)
            tool.process.send_signal(signal.SIGCONT)
            tool.waits(lambda tool, count=entered + 1: tool.out.count(ENTERS) == count)
        code = tool.interrupted()
        assert (code, tool.err) == (130, "")
        assert is_as_before(tool.out)


def test_another_size(start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    """Is taken at once, however rarely it looks."""
    server = start_redis(arguments=["A", "127.0.0.1", "1"])
    words = ("status", "--interval", "3600", "--redis", url(server))
    with Running(tmp_path, *words, terminal=True, size=(WIDE, 50)) as tool:

        def fills(size: tuple[int, int]) -> bool:
            lines = frame(tool.out).splitlines()
            return max(map(len, lines), default=0) == size[0] and len(lines) == size[1]

        for size in ((WIDE, 50), (NARROW, 8), (USUAL, 24)):
            tool.resize(size)
            tool.waits(lambda tool, size=size: fills(size), f"a view of the size {size}")
            assert "…" not in tool.out
        assert tool.interrupted() == 130


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "3601", "x"])
def test_an_interval_that_is_not_accepted(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["status", f"--interval={text}"])
    words = f"'{text}' is not accepted; give a number of seconds above 0, 3600 at most"
    assert words in capfd.readouterr().err


# ---- where there is no view ----------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "env", "why"),
    [
        (False, {}, "the output is no terminal"),
        # Those that look for a terminal in it are for colours.
        (False, {"FORCE_COLOR": "1"}, "the output is no terminal"),
        (False, {"TTY_COMPATIBLE": "1"}, "the output is no terminal"),
        (True, {"TERM": "dumb"}, "TERM=dumb"),
        (True, {"TTY_INTERACTIVE": "0"}, "TTY_INTERACTIVE"),
    ],
)
def test_live_needs_a_terminal(
    terminal: bool,
    env: dict[str, str],
    why: str,
    start_redis: StartRedis,
    tmp_path: pathlib.Path,
) -> None:
    """Without one, `status` is one table, and --live is refused."""
    server = start_redis(arguments=["A", "127.0.0.1", "1"])
    words = ("status", "--redis", url(server))
    with Running(tmp_path, *words, terminal=terminal, env=env) as tool:
        assert tool.process.wait(SOON) == 0, tool.err
        assert ENTERS not in tool.out
        assert "primary" in tool.out
    with Running(tmp_path, *words, "--live", terminal=terminal, env=env) as tool:
        assert tool.process.wait(SOON) == 1
        assert why in tool.err
        assert "--once" in tool.err


@pytest.mark.parametrize("terminal", [True, False])
def test_a_locale_without_these_characters(
    terminal: bool, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """The names of a broker or a user may have any characters."""
    server = start_redis(arguments=["A", "é.invalid", "1"])
    words = ("status", "--redis", url(server))
    env = {"PYTHONIOENCODING": "ascii"}
    size = (WIDE, 50)
    with Running(tmp_path, *words, terminal=terminal, size=size, env=env) as tool:
        if terminal:
            tool.waits(lambda tool: r"\xe9.invalid" in frame(tool.out), "a view")
            assert tool.interrupted() == 130
        else:
            assert tool.process.wait(SOON) == 0, tool.err
        assert r"\xe9.invalid" in tool.out
        assert tool.err == ""


# ---- the picture ---------------------------------------------------------------------


def test_the_picture_in_the_readme() -> None:
    """It is of the view as it is, and gets nothing from elsewhere."""
    group: Any = types.SimpleNamespace(nodes=[], clustered=True)
    view = status.View(group, 1)
    view._looks = [node(port) for port in range(6)]
    view._history.add(view._looks, 0)
    made, kept = picture.svg(view), picture.PICTURE.read_text()
    assert "docs/status.svg" in (ROOT / "README.md").read_text()
    for text in (made, kept):
        assert "url(http" not in text
        assert 'url("http' not in text
        words = re.sub(r"<[^>]*>", " ", text).replace("&#160;", " ")
        for word in ("events", "confirms", "list", "99% within", "6 of 6", "address", "dropped"):
            assert word in words, word
