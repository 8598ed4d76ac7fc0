"""Field 2: admit, place, reconcile; engines, model files, and the agent that runs them."""
