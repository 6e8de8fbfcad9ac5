"""Finding what to train with: the learning rate and the batch size that suit a module and its data."""
