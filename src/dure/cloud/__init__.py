"""Field 3: the cloud its tenants see."""
