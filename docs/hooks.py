"""Build hook: the executed notebooks become pages, with the outputs and pictures that they hold."""

import base64
import json
import re
import textwrap
from pathlib import Path

from mkdocs.structure.files import File

# In the order in which they are read.
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def on_files(files, config):
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        page, images = convert(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, content in images.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown, **_):
    """In a table GitHub wants the bars of code escaped; here they are no borders, and would show the escape."""
    table = re.compile(r"^\|.*$", re.M)
    return table.sub(lambda row: re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), row[0]), markdown)


def convert(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by name."""
    parts, images = [], {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                data = output.get("data", {})
                if "image/png" in data:
                    name = f"{path.stem}-{len(images)}.png"
                    images[name] = base64.b64decode("".join(data["image/png"]))
                    parts.append(f"![{_caption(source)}]({name})")
                elif "text/html" in data:
                    parts.append("<div class='output'>\n" + "".join(data["text/html"]).strip() + "\n</div>")
                elif text := "".join(data.get("text/plain", output.get("text", ""))).rstrip():
                    lines = (textwrap.fill(line, 88) if "Warning: " in line else line for line in text.splitlines())
                    parts.append("```text\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(parts) + "\n", images


def _caption(source: str) -> str:
    return "Figure drawn by: " + source.strip().splitlines()[-1].replace("[", "(").replace("]", ")")
