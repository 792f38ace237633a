"""Pictures of histories: still ones with matplotlib, an interactive page with plotly. (Extra `plots`.)"""

from importlib import import_module

try:
    import_module("matplotlib")
    import_module("plotly")
except ImportError as error:
    raise ImportError(f"jaxnorm.plots needs {error.name}: pip install 'jaxnorm[plots]'") from error

from jaxnorm.plots.page import distribution_page
from jaxnorm.plots.sharing import sharing_picture, sharing_sets
from jaxnorm.plots.stills import plot_histograms, plot_percentiles, plot_scalars

__all__ = [
    "distribution_page",
    "plot_histograms",
    "plot_percentiles",
    "plot_scalars",
    "sharing_picture",
    "sharing_sets",
]
