"""Finding what to train with: the learning rate that suits a module and its data."""
