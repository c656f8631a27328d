"""The SimPy model: the parts of the real system under their own names, and the life of a job among them."""
