"""Mean-field theory of wide random layers: what they do to a signal, a gradient, and the angle of two inputs."""
