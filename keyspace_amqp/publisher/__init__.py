"""All decisions on the way of an event, from the queue to its confirm, sans I/O."""
