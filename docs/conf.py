"""How the site is built: `python -m sphinx -W --keep-going -n -b html docs OUT`."""

import os
import sys
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # progress bars are for terminals; read at import

import skvaecert

sys.path.insert(0, str(Path(__file__).parent))  # for _pages

project = "skvaecert"
author = copyright = "the skvaecert developers"
version = release = skvaecert.__version__

# No intersphinx: the build reads nothing from the network.
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_gallery.gen_gallery",
    "_pages",
]
exclude_patterns = ["_build", "auto_examples/**.ipynb", "sg_execution_times.rst"]
templates_path = ["_templates"]
# Names in single backticks, as docstrings have them, are code.
default_role = "literal"

# Headings get the anchors that repository browsers give them.
myst_heading_anchors = 4

autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_typehints = "none"  # docstrings have types, shapes and ranges
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "within_subsection_order": "_pages.ReadingOrder",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"/(benchmarks|papers)/",
    "show_memory": False,
    "parallel": 2,
    "min_reported_time": 0,
    "download_all_examples": False,
    # What a call returns is not output of an example; what it prints is.
    "capture_repr": (),
    "remove_config_comments": True,
}

html_theme = "pydata_sphinx_theme"
html_title = "skvaecert"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "header_links_before_dropdown": 5,
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# Pages without pages below them need no second menu.
html_sidebars = {"*": [], "reference": ["sidebar-nav-bs"]}

# Names of others; their pages are on other sites.
nitpick_ignore_regex = [(r"py:.*", r"(numpy|scipy|sklearn|skorch|torch)\..*")]
# From docstrings that scikit-learn writes, of set_fit_request and n_features_in_.
nitpick_ignore = [
    ("std:ref", "metadata_routing"),
    ("std:term", "meta-estimator"),
    ("std:term", "fit"),
    ("py:obj", "n_features_in_"),
]
