"""Samples of torch, as arrays or lists: in which form, and in which order."""
