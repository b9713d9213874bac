"""The time limits that several files have to agree on, in seconds.

The shim gets them in milliseconds (shim/generate.py). A limit of one file alone stands
in that file. Pure: imports nothing.
"""

from __future__ import annotations

# ---- load -----------------------------------------------------------------------
# The main thread waits for the worker to import everything and start.
READY = 30.0

# ---- a stop: SHUTDOWN, MODULE UNLOAD ------------------------------------------------
# The worker delivers or stores what was captured.
STOP = 5.0
# Then it writes the rest to the file of leftovers.
STOP_LEFTOVERS = 2.0
# Then it waits for the broker to agree to the end of the connection.
STOP_GOODBYE = 0.5
# Extra time for all of these, because the worker is slow on a busy machine.
STARVED = 2.5
# After that the main thread goes on without the worker.
STOP_LIMIT = STOP + STOP_LEFTOVERS + STOP_GOODBYE + STARVED
# The file is written until then, if necessary. The last second is for the disk.
STOP_WRITE = STOP_LIMIT - STOP_GOODBYE - 1.0

# ---- a save on the main thread ---------------------------------------------------------
# The worker stores the events of memory in the list, so that the saved file has them.
SAVE = 2.0
# After that the main thread saves without waiting for the worker.
SAVE_LIMIT = SAVE + 2 * STARVED

# ---- commands: each limit is well below the one before it ------------------------------
# A client waits for the reply of a command.
COMMAND = 5.0
# A node waits for the answers of other nodes to a command.
ASK = 3.0
# One FALLBACK IMPORT takes elements over.
IMPORT = 1.5
