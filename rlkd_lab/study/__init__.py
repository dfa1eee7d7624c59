"""Studies: a model evaluated, two models compared, and the statistics of both."""
