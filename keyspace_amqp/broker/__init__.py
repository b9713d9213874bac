"""The connection to RabbitMQ, by pika. The only folder that imports pika in Redis' process."""
