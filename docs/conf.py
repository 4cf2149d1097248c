"How Sphinx builds the site that `docs/build.py` gathers. No page loads anything from elsewhere."
from configparser import ConfigParser
from pathlib import Path

import sidebar
from contents import Course
from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.pycode import ModuleAnalyzer

ROOT = Path(__file__).resolve().parent.parent
settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project = settings["lib_name"]
author = settings["author"]
version = settings["version"]
copyright = settings["copyright"]
extensions = ["myst_nb", "sphinx.ext.viewcode"]
nb_execution_mode = "off"                                         # the outputs are those that were committed
# A page has no kernel: a widget is the line that says what to do, or what docs/live.py made of it.
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_merge_streams = True
suppress_warnings = ["misc.highlighting_failure"]                # a cell of `!torchrun` is no Python
nb_render_image_options = {"alt": "figure"}                       # each figure's title says what it shows
myst_enable_extensions = ["dollarmath", "fieldlist", "html_image"]
myst_heading_anchors = 3
python_maximum_signature_line_length = 60
add_module_names = False
html_math_renderer = "mathml"
smartquotes_action = "D"                                          # dashes only: shapes are (..., T, D)

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = [("widgets.js", {"defer": "defer"}), ("fold.js", {"defer": "defer"})]
html_favicon = "static/icon.svg"
html_copy_source = html_show_sphinx = False


def find_source(app, module):
    "The source of a module and where its parts stand, without importing it."
    found = ROOT / f"{module.replace('.', '/')}.py"
    if not found.is_file():
        return None
    analyzer = ModuleAnalyzer.for_file(found, module)
    analyzer.analyze()
    return analyzer.code, analyzer.tags


NEIGHBORS = Course().neighbors()
LABELS = Course().labels()


def lead_on(app, page, template, context, doctree):
    "What stands before and behind a lesson or a workshop; elsewhere the table of contents says it."
    for which, other in zip(("prev", "next"), NEIGHBORS.get(page, ())):
        context[which] = None
        if other is not None:
            link = app.builder.get_relative_uri(page, other)
            context[which] = {"link": link, "title": LABELS.get(other, project)}


def math(as_block):
    "Formulas as MathML, which browsers draw themselves."
    def visit(self, node):
        self.body.append(tex2mathml(node.astext(), as_block=as_block))
        raise SkipNode
    return visit, None


def setup(app):
    app.add_html_math_renderer("mathml", math(False), math(True))
    app.connect("viewcode-find-source", find_source)
    app.connect("html-page-context", lead_on)
    sidebar.connect(app)
