"""TaylorGLO: search for better loss functions (arXiv 2002.00059 and 2010.00788)."""

__version__ = "0.1.0"
