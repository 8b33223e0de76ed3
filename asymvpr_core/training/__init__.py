"""Training a query network to speak the gallery network's language."""
