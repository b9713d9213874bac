"""The connection to RabbitMQ. Only this folder imports pika."""
