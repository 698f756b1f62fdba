"""Training of a VAE by skorch."""
