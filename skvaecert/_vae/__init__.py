"""CertifiedVAE: its data, guard, history and saved state."""
