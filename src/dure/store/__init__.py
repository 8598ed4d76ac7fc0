"""The log: one sequence of events on disk, chained by hashes, from which every state is rebuilt."""
