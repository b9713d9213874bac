"""keyspace-amqp: Redis keyspace events in RabbitMQ, at least once, in order per node.

The package is the handler that the module `libredis_keyspace_amqp.so` runs
inside redis-server, and the command line `keyspace-amqp`. Importing it has no
effects and needs no other package.
"""

__version__ = "0.1.0"
