"""The time limits that several files have to agree on, in seconds.

The shim gets them in milliseconds (shim/generate.py). A limit that only one file
uses stands in that file. Pure: imports nothing.
"""

from __future__ import annotations

# ---- load -----------------------------------------------------------------------
# The main thread waits so long for the worker to import everything and start.
READY = 30.0

# ---- a stop: SHUTDOWN, MODULE UNLOAD ------------------------------------------------
# The worker delivers or stores what was captured.
STOP = 5.0
# Then it takes what is still in the queue into the file of leftovers.
STOP_LEFTOVERS = 2.0
# Then it waits for the broker to agree to the end of the connection.
STOP_GOODBYE = 0.5
# A busy machine may give the worker little processor time.
STARVED = 2.5
# After all of that the main thread goes on without the worker.
STOP_LIMIT = STOP + STOP_LEFTOVERS + STOP_GOODBYE + STARVED

# ---- a save on the main thread ---------------------------------------------------------
# The worker stores what is in memory, so that it is in the file.
SAVE = 2.0
# After this the main thread saves without it.
SAVE_LIMIT = SAVE + 2 * STARVED

# ---- commands: each limit leaves time for what waits for it ---------------------------
# A client waits so long for the reply of a command.
COMMAND = 5.0
# A node waits so long for the answers of other nodes within a command.
ASK = 3.0
# FALLBACK IMPORT takes elements over for so long within an answer.
IMPORT = 1.5
