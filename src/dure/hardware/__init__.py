"""Field 1: chips of a machine, found and read through one port, `driver.Driver`."""
