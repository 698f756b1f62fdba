"""Models trained elsewhere, as transformers that a CollapseCertifier takes."""

from skvaecert.wrappers._encoder import TrainedEncoder

__all__ = ["TrainedEncoder"]
