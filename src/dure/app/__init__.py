"""One wiring module a process: the only places that pick real parts and read the environment."""
