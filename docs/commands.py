"""The reference of the command line, which cyclopts writes from the application itself."""

from taskgraft.cli import app

HEADING = "\n## taskgraft "


def page() -> str:
    """Each command: what it does, its arguments, its flags by panel, its example."""
    overview, *commands = app.generate_docs(output_format="markdown").partition("\n")[2].split(HEADING)
    examples = [app[text.split(maxsplit=1)[0]].help_epilogue for text in commands]
    return overview + "".join(f"{HEADING}{text}\n{example}\n" for text, example in zip(commands, examples, strict=True))
