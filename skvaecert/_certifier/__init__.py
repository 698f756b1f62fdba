"""CollapseCertifier: its kinds of certificates, witnesses and saved state."""
