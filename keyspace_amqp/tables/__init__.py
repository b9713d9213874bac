"""Facts that are written once: C, documentation and COMMAND DOCS are made from them."""
