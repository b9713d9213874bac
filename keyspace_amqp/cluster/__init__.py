"""The cluster: its nodes, slots and fallback lists, and the messages between the nodes."""
