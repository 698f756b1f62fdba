"""The VAE."""
