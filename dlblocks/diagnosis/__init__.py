"""Will a network start to train? A probe of one batch, a verdict in words, and what would help."""
