"""A program of its own, since SAEBench needs an environment of its own: it imports nothing of saelora."""
