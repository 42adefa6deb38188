"""Ready-made model functions."""
