"""URLs of Redis that the tools cannot read."""

from __future__ import annotations

import pytest

from keyspace_amqp import cli

_BEGINS = "it begins with redis://, rediss:// (TLS) or unix:// (a socket), as "


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("foo", _BEGINS + "redis://foo does"),
        ("foo.example:6380", _BEGINS + "redis://foo.example:6380 does"),
        ("/run/redis.sock", _BEGINS + "unix:///run/redis.sock does"),
        ("s3cret@foo", _BEGINS + "redis://user:password@host:port does"),
        ("http://u:s3cret@foo", _BEGINS + "redis://user:password@host:port does"),
        ("", _BEGINS),
        ("redis://foo:port", "the port is a number"),
        ("redis://foo:70000", "the port is a number"),
        ("redis://u:s3cret#s3cret@foo", "write # as %23"),
        ("redis://u:s3cret/s3cret@foo", "/ as %2F"),
        ("redis://u:s3cret?s3cret@foo", "? as %3F"),
        ("redis://u:s3cret[@foo", "[ as %5B"),
        ("redis://foo?password=x&s3cret", "a name behind the ? is not accepted (in a password,"),
        ("rediss://foo?ssl_password=x&s3cret=", "write & as %26"),
    ],
)
@pytest.mark.parametrize("tool", ["status", "doctor", "tail", "exporter"])
def test_a_url_that_cannot_be_read(
    tool: str, url: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error says what is missing, or how to write it, and shows no password."""
    more = {"status": ["--once"], "exporter": ["--listen", "127.0.0.1:1"]}.get(tool, [])
    assert cli.main([tool, "--redis", url, *more]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "s3cret" not in error
    assert error.count("\n") == 1
