"""Wrappers that turn models trained elsewhere into scikit-learn transformers."""

from skvaecert.wrappers._encoder import TrainedEncoder

__all__ = ["TrainedEncoder"]
