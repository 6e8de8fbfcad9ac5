"""How good a trained run is: all metrics on any part of its data, with a picture."""
