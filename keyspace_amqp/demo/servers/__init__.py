"""Real, private servers on loopback, for the demos and for the tests.

A server is started by `start` (or `with`), which returns only when the server answers.
`stop` ends all its processes. Ports are free ones, and the data lies in a folder of the
server's own. Never imported inside Redis.
"""

from .ports import free_port
from .process import POLL, ServerError, wait_for
from .rabbit_server import RabbitServer
from .redis_cluster import RedisCluster, as_text
from .redis_server import RedisServer

__all__ = [
    "POLL",
    "RabbitServer",
    "RedisCluster",
    "RedisServer",
    "ServerError",
    "as_text",
    "free_port",
    "wait_for",
]
