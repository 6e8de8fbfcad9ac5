"""More of the catalogue of losses, by family."""
