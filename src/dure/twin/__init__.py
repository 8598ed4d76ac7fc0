"""The digital twin: the production `turn` under a virtual clock, with simulated nodes."""
