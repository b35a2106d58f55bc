"""TaylorGLO: search for better loss functions (arXiv 2002.00059 and 2010.00788)."""

from taylorglo.loading import load_loss

__all__ = ["load_loss"]
__version__ = "0.1.0"
