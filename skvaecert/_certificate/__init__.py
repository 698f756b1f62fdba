"""The certificate: sums, rounding, verdict."""
