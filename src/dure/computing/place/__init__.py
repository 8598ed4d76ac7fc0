"""Placement: filter, fit, score, over column arrays kept by the fold."""
