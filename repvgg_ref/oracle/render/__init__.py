"""A `Report` for people and machines: an HTML page, JUnit XML, an assertion's message.

What a page needs (Jinja, Pillow) is imported when one is made. The command has the terminal's view.
"""

from repvgg_ref.oracle.render.assertion import assertion_text
from repvgg_ref.oracle.render.html import render_html
from repvgg_ref.oracle.render.junit import render_junit

__all__ = ["assertion_text", "render_html", "render_junit"]
