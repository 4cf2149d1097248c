"""The table of contents beside each page.

The theme makes it anew for every page, each time from all pages' names, which took more than half of
the build. Here it is made once, as it stands beside the first page; beside another one its links are
written from there, the page's own line is marked, and what that line stands in is open."""

import re
from functools import cache

from furo.navigation import get_navigation_tree
from sphinx.environment.adapters.toctree import TocTree

WHOLE = {"collapse": False, "titles_only": True, "maxdepth": -1, "includehidden": True}


@cache
def first_tree(app) -> str:
    "The table of contents as it stands beside the first page."
    node = TocTree(app.env).get_toctree_for(app.config.root_doc, app.builder, **WHOLE)
    return get_navigation_tree(app.builder.render_partial(node)["fragment"])


def marked(tree: str, page: str, marks: str) -> str:
    "The tree with a page's entry marked, and with what stands below that entry in sight."
    link = rf'<a class="reference internal" href="{re.escape(page)}\.html">'
    tree = re.sub(rf'<li class="([^"]*)">(?={link})', rf'<li class="\1 {marks}">', tree)
    return re.sub(rf"({link}[^<]*</a><input )", r'\1checked="" ', tree)


def no_tree(app, page, template, context, doctree):
    "Nothing for the theme to make a table of contents from."
    context["toctree"] = lambda **_: ""


def tree_beside(app, page, template, context, doctree):
    "Put the table of contents beside a page."
    tree = marked(first_tree(app), page, "current current-page")
    parent = app.builder.relations.get(page, [None])[0]
    while parent:
        tree = marked(tree, parent, "current")
        parent = app.builder.relations[parent][0]

    def from_here(found):
        if found[1] == page:
            return 'class="current reference internal" href="#"'
        return f'class="reference internal" href="{app.builder.get_relative_uri(page, found[1])}"'

    links = r'class="reference internal" href="([^"#]+)\.html"'
    context["furo_navigation_tree"] = re.sub(links, from_here, tree)


def connect(app):
    "Before the theme, which comes at 500, and behind it."
    app.connect("html-page-context", no_tree, priority=400)
    app.connect("html-page-context", tree_beside, priority=600)
