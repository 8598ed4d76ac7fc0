"""The `dure` command: parse, call the client, render."""
