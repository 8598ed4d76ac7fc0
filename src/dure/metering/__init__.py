"""Metering: pure folds over the log's events into usage, energy and cost. Imports only `model`."""
