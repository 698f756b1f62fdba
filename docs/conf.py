"""Build the site with `python -m sphinx -W --keep-going -n -b html docs OUT`."""

import os
import sys
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # no progress bars on pages; tqdm reads this at import

import skvaecert

sys.path.insert(0, str(Path(__file__).parent))  # for _pages

project = "skvaecert"
author = copyright = "the skvaecert developers"
version = release = skvaecert.__version__

# Without intersphinx, so that the build needs no network.
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
    "_pages",
]
exclude_patterns = ["_build", "auto_examples/**.ipynb", "sg_execution_times.rst"]
templates_path = ["_templates"]
# Docstrings write code in single backticks.
default_role = "literal"

# The same anchors of headings and the same $formulas$ as in repository browsers.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]

autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_typehints = "none"  # docstrings give types, shapes and ranges
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
    # Pages of examples show what is printed, not what calls return.
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
# Only the reference has pages below it, and so a second menu.
html_sidebars = {"*": [], "reference": ["sidebar-nav-bs"]}

# Names of other packages are documented on other sites.
nitpick_ignore_regex = [(r"py:.*", r"(numpy|scipy|sklearn|skorch|torch)\..*")]
# References in docstrings that scikit-learn writes, as of set_fit_request.
nitpick_ignore = [
    ("std:ref", "metadata_routing"),
    ("std:term", "meta-estimator"),
    ("std:term", "fit"),
    ("py:obj", "n_features_in_"),
]
