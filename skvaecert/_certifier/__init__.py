"""The estimator that certifies."""
