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
        ("redis://foo:port", "the port and the database behind the / are numbers"),
        ("redis://foo:70000", "the port and the database behind the / are numbers"),
        ("redis://u:s3cret#s3cret@foo", "write # as %23"),
        ("redis://u:s3cret/s3cret@foo", "/ as %2F"),
        ("redis://u:s3cret?s3cret@foo", "? as %3F"),
        ("redis://u:s3cret[@foo", "[ as %5B"),
        ("redis://foo?password=x&s3cret", "a name behind the ? is not accepted (in a password,"),
        ("rediss://foo?ssl_password=x&s3cret=", "write & as %26"),
        ("redis://foo?socket_timeout=abc", "socket_timeout: 'abc' is not accepted; give seconds"),
        ("redis://foo?socket_connect_timeout=0", "socket_connect_timeout: '0' is not accepted; "),
        ("redis://foo?socket_timeout=nan", "socket_timeout: 'nan' is not accepted; give seconds"),
        ("redis://foo?socket_timeout=-1", "socket_timeout: '-1' is not accepted; give seconds"),
        ("redis://foo?socket_timeout=1e99", "socket_timeout: '1e99' is not accepted; "),
        ("redis://foo?db=first", "db: 'first' is not accepted; give a number from 0"),
        ("redis://foo?db=-1", "db: '-1' is not accepted; give a number from 0"),
        ("redis://foo?db=", "db: '' is not accepted; give a number from 0"),
        ("redis://foo?db=first&db=1", "db: 'first' is not accepted; give a number from 0"),
        ("redis://foo?protocol=4", "protocol: '4' is not accepted; give 2 or 3"),
        ("rediss://foo?ssl_check_hostname=1", "'1' is not accepted; give yes, no, true or false"),
        ("rediss://foo?ssl_cert_reqs=", "'' is not accepted; give required, optional or none"),
        ("redis://foo?password=x&db=s3cret", "db: its value is not accepted; give a number"),
        ("redis://foo/first", "the port and the database behind the / are numbers"),
        ("redis://u/s3cret@foo", "write # as %23, / as %2F"),
    ],
)
@pytest.mark.parametrize("tool", ["status", "doctor", "tail", "exporter"])
def test_a_url_that_cannot_be_read(
    tool: str, url: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error says what is missing, or how to write it, and shows no password."""
    # An exporter that would go on ends at an address which this machine does not have.
    more = {"status": ["--once"], "exporter": ["--listen", "192.0.2.1:1"]}.get(tool, [])
    assert cli.main([tool, "--redis", url, *more]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "s3cret" not in error
    assert error.count("\n") == 1
