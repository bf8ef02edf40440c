"""How the documentation is built: `make docs` runs Sphinx over this folder; a warning is an error."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]
os.environ["HF_HUB_OFFLINE"] = "1"  # building the documentation needs no network

project = "longpress"
author = "the longpress authors"
project_copyright = "the longpress authors, Apache-2.0"
release = installed_version("longpress")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "longpress_pages"]
exclude_patterns = ["_build", "_extensions"]
root_doc = "index"

# every reference of ours must lead somewhere; those of others cannot be looked up without a network
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!(longpress|kvcache|presses|benchmarks)\.).*")]
INSIDE = (
    *("kvcache.observation.Result", "kvcache.observation.Scorer"),
    *("kvcache.observation.AttentionInputs", "kvcache.observation.AttentionProbe", "kvcache.storage.KVView"),
    *("longpress.pipeline.compressed_context.Chunk", "longpress.pipeline.rows.AfterQuestion"),
)
"""Types that signatures on the page of Python mention, and that nobody outside needs to know."""
nitpick_ignore = [("py:class", name) for name in INSIDE]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = "longpress"
html_static_path = ["_static"]
html_css_files = ["longpress.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
