"""Showing a page of Gradio's on this machine: no share link, no telemetry, nothing loaded from another host."""

import os
from typing import Any

from cacse_trainer.errors import UserError, extra_needed


def serve_page(page: Any, command: str, host: str, port: int, css: str, head: str = "") -> tuple[Any, str]:
    """Show blocks of Gradio's at ``http://host:port``.

    Args:
        page: the blocks.
        command: whose page it is, for errors.
        host: 127.0.0.1 is seen from this machine only, 0.0.0.0 from others too.
        port: 0 takes a free one from 7860 on.
        css, head: the page's own style, and what stands in its head.

    Returns:
        The page, with ``block_thread()`` and ``close()``, and its address.

    Raises:
        UserError: gradio is not installed, or the port is taken.
    """
    gr = load_gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none to download
    theme = gr.themes.Default(primary_hue="blue", **fonts)
    quietly = {"share": False, "quiet": True, "ssr_mode": False, "prevent_thread_lock": True, "footer_links": []}
    look = {"css": css, "head": head, "theme": theme}
    try:
        _, address, _ = page.launch(server_name=host, server_port=port or None, **look, **quietly)
    except OSError as error:
        raise UserError(f"{command}: {host}:{port} cannot be opened ({error}); choose another --port") from error
    return page, address


def load_gradio() -> Any:
    """The gradio module, its telemetry switched off.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    with extra_needed("demo", "pages in the browser need gradio"):
        import gradio
    return gradio
