"""Will a network start to train? The theory of wide random networks, and a probe of a real one."""
