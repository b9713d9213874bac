"""The cluster: nodes, slots, fallback lists, and what the nodes tell each other."""
