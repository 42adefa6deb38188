"""Sphinx settings. The build needs no network: nothing is linked from elsewhere."""

from __future__ import annotations

import jaxnlme

project = "jaxnlme"
author = "the jaxnlme contributors"
release = jaxnlme.__version__
extensions = ["myst_nb", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "alabaster"
html_theme_options = {"description": project, "page_width": "1100px"}
html_title = f"jaxnlme {release}"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 2
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
suppress_warnings = ["myst.header"]
