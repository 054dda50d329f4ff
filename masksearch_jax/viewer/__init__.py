"""A run's files become one self-contained HTML page: `render(run_dir)`."""

from masksearch_jax.viewer.page import render

__all__ = ["render"]
