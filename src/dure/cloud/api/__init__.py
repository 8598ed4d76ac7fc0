"""Control's HTTP: the API, the plain page, the links of agents and gateways."""
