"""How Sphinx makes the documentation: the pages of this folder, and the interface of both packages from their docstrings."""

import asymvpr_core

project = "asymvpr"
author = "asymvpr maintainers"
project_copyright = "asymvpr maintainers, Apache-2.0"
release = asymvpr_core.__version__

extensions = ["myst_parser", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conf.py"]
html_theme = "furo"
html_title = f"asymvpr {release}"

myst_heading_anchors = 4  # links to headings are those of GitHub

# The command line documents itself: asymvpr --help.
_COMMON: dict[str, object] = {
    "exclude_patterns": ["**/__main__.py", "**/cli/*"],
    "separate_modules": True,
    "module_first": True,
    "implicit_namespaces": False,
}
apidoc_modules = [
    {"path": "../asymvpr_core", "destination": "api/core", **_COMMON},
    {"path": "../asymvpr_ros", "destination": "api/ros", **_COMMON},
]
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False  # Lightning's own pages have theirs
napoleon_numpy_docstring = False
suppress_warnings = ["ref.python"]  # two classes of one name in different modules: a type hint then leads to neither
