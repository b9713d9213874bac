"""`keyspace-amqp doctor`: finds problems, and gives advice.

Changes nothing in Redis. It sends the broker one message in a transaction, and rolls that back:
the broker checks whether the user may publish the message, and no queue gets it. Only with
--publish a message reaches a queue.
"""
