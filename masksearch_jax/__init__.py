"""Training search agents in JAX: masked prediction with retrieval, SFT and DAPO."""

__version__ = "0.1.0"
