"""The site: `make docs`.

Its sources are the Markdown files of the whole checkout, so that a page is written once, whether it
is read here, on a code host or in an editor.
"""

import hashlib
import importlib
import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
BUILD = ROOT / "build" / "docs"
sys.path[:0] = [str(DOCS), str(ROOT)]

# The notebooks' kernels: this checkout, the CPU, and programs that are compiled once for all.
paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(paths)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(BUILD / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Nor does anybody's IPython profile change what they show.
os.environ["IPYTHONDIR"] = str(BUILD / "ipython")
profile = BUILD / "ipython" / "profile_default" / "ipython_kernel_config.py"
profile.parent.mkdir(parents=True, exist_ok=True)
profile.write_text(
    "c.IPKernelApp.log_level = 40  # not that nobody encrypts what stays on a host\n"
)

project, author, copyright = "flaxvgg", "", "the authors of flaxvgg, MIT license"
version = release = importlib.import_module("flaxvgg").__version__
root_doc = "docs/index"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
    "reference_tables",
]
include_patterns = [
    "*.md",
    "docs/**.md",
    "experiments/*/README.md",
    "flaxvgg/heads/*.md",
    "flaxvgg/perceptual/*.md",
]
# Folders that are not even looked into.
exclude_patterns = [".*", "build", "dist", "convert", "scripts", "tests", "requirements"]
templates_path = ["_templates"]
# Without a kernel (`-D nb_execution_mode=off`) nobody says that cells are Python.
suppress_warnings = ["myst-nb.lexer"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
# What notebooks show is this package's: another one runs them again.
sources = sorted(
    path for kind in ("py", "c", "h") for path in (ROOT / "flaxvgg").rglob(f"*.{kind}")
)
digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
nb_execution_cache_path = str(BUILD / "executed" / digest)
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_output_stderr = "warn"  # a warning in a notebook is a warning of the build
nb_merge_streams = True

smartquotes = False  # of --weights and "all" every character counts
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
autosummary_generate = False

html_theme = "sphinx_book_theme"
html_title = "flaxvgg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}
html_theme_options = {
    "home_page_in_toc": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    # The newer pydata theme would put a second search above the page.
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
}
html_copy_source = html_show_sourcelink = False
# Prompts and what a command prints are not copied along.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"
