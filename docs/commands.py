"""The reference of the command line, which cyclopts writes from the application itself."""

from taskgraft.cli import app


def page() -> str:
    """Each command: what it does, its arguments, its flags by panel, its example."""
    return app.generate_docs(output_format="markdown").partition("\n")[2]
