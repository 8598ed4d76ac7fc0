"""One file a vendor; nothing else in the source names it."""
