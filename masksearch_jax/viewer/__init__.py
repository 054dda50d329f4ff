"""Files of runs become one self-contained HTML page: `render([folder])`."""

from masksearch_jax.viewer.page import MAX_TRAJECTORIES, render

__all__ = ["MAX_TRAJECTORIES", "render"]
