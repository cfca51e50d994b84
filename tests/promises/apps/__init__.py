"""Apps whose pieces run in worker processes: they have to be importable."""
