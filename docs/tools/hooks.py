"""Pages of the site that are made from other files: options, reference, benchmarks, changelog; and mermaid's script."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the checkout, installed or not

from recbole_adrrec import options  # noqa: E402
from recbole_adrrec.models import MODULES  # noqa: E402

MERMAID = "javascripts/mermaid.js"
PYTHON = ("recbole_adrrec", "recbole_adrrec.tools.recommend", "recbole_adrrec.tools.recommendations")
REFERENCE = {
    "python": ("Python", [*PYTHON, "recbole_adrrec.errors", "recbole_adrrec.times"]),
    "data": ("Data", ["recbole_adrrec.data"]),
    "layers": ("Layers", ["recbole_adrrec.layers", "recbole_adrrec.losses"]),
    "models": ("Models", ["recbole_adrrec.models"]),
    "option_types": ("Option types", ["recbole_adrrec.options"]),
    "tools": ("Tools", ["recbole_adrrec.tools", "recbole_adrrec.files"]),
    "service": ("Service", ["recbole_adrrec.service"]),
    "integration": ("RecBole", ["recbole_adrrec.integration", "recbole_adrrec.collectives"]),
}
"""Pages of the reference: title, and modules or packages, whose modules follow one another."""

SECTIONS = {"ADRRec": "adrrec-and-meantime", "MEANTIME": "adrrec-and-meantime"}
"""Section of docs/models.md about a model, where it is not the model's own name."""

ELSEWHERE = {
    "benchmarks.md": ("benchmarks/README.md", "../docs/"),
    "changelog.md": ("CHANGELOG.md", "docs/"),
    "contributing.md": ("CONTRIBUTING.md", "docs/"),
}
"""Pages that lie outside of docs/, and how they name it."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    for name, text in _pages():
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, MERMAID, abs_src_path=str(_mermaid())))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that leave docs/ into links to the pages made of those files."""
    markdown = re.sub(r"\]\(\.\./properties/model/(\w+)\.yaml\)", r"](models/\1.md)", markdown)
    markdown = markdown.replace("](../properties/overall.yaml)", "](reference/options.md)")
    for name, (file, _) in ELSEWHERE.items():
        for up in ("../", ""):
            markdown = markdown.replace(f"]({up}{file}", f"]({name}")
    # In their own size: shrunk to the width of a page, wide drawings cannot be read.
    return markdown.replace("```mermaid\n", '```mermaid\n%%{init: {"flowchart": {"useMaxWidth": false}}}%%\n')


def on_page_context(context: Any, page: Any, **_: Any) -> Any:
    """Give notebooks, whose figures are wide, the room of the table of contents."""
    if page.file.src_uri.endswith(".ipynb"):
        page.meta["hide"] = ["toc"]
    return context


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Load mermaid where something is drawn with it."""
    if 'class="mermaid"' not in output:
        return output
    up = "../" * page.url.count("/")
    return output.replace("</head>", f'<script src="{up}{MERMAID}"></script></head>', 1)


def _mermaid() -> Path:
    """Mermaid's own script, which the package mermaidx carries; the theme would fetch it from a public server."""
    spec = importlib.util.find_spec("mermaidx")
    assert spec is not None, 'mermaidx is not installed; pip install -e ".[docs]"'
    assert spec.origin is not None
    return Path(spec.origin).parent / "assets" / "mermaid.js"


def _pages() -> Iterator[tuple[str, str]]:
    for name, (file, prefix) in ELSEWHERE.items():
        yield name, (ROOT / file).read_text(encoding="utf-8").replace(f"]({prefix}", "](")
    for model, module in MODULES.items():
        yield f"models/{model}.md", _model_page(model, module)
    yield "reference/options.md", _options_page()
    for name, (title, modules) in REFERENCE.items():
        found = [module for each in modules for module in _modules(each)]
        blocks = [f"::: {module}" for module in found if name == "python" or module not in PYTHON]
        yield f"reference/{name}.md", "\n\n".join([f"# {title}", *blocks])


def _model_page(model: str, module: str) -> str:
    section = SECTIONS.get(model, model.lower())
    return "\n\n".join(
        [
            f"# {model}",
            f"```\npython run_recbole.py --model={model} --dataset=ml-100k\n```",
            f"[Equations, cost, departures from its source](../models.md#{section})"
            f" · [what is interpretation](../interpretation.md) · [results](../results.md)",
            f"::: {module}.{model}\n    options:\n      show_root_full_path: false\n      members: false",
            f"## Options\n\nFrom `properties/model/{model}.yaml`; [options of every run](../reference/options.md) come "
            "beside them.",
            _table(options.load_properties("model", model), options.comments("model", model)),
        ]
    )


def _options_page() -> str:
    sets = "\n".join(f"- `{name}`" for name in options.property_names("dataset"))
    return "\n\n".join(
        [
            "# Options of every run",
            "From `properties/overall.yaml`: options of every sequential model that runs here, RecBole's own too. Each "
            "[model](../models.md) has its own beside them. The [guide](../guide.md) says which counts if one is given "
            "twice.",
            _table(options.load_properties("overall"), options.comments("overall")),
            "## Data sets with settings of ours",
            sets,
        ]
    )


def _table(defaults: dict[str, Any], meanings: dict[str, str]) -> str:
    rows = []
    for name, default in defaults.items():
        kind, _, meaning = meanings[name].removeprefix("(").partition(") ")
        value = "unset" if default is None else f"`{json.dumps(default)}`"
        rows.append(f"| `{name}` | {kind} | {value} | {_escaped(meaning)} |")
    return "\n".join(["| option | type | default | meaning |", "|---|---|---|---|", *rows])


def _escaped(text: str) -> str:
    """Text of a comment as Markdown: no emphasis by stars, no new columns by bars."""
    return re.sub(r"([*|<>])", r"\\\1", re.sub(r"(?<![`\w])(\w+_\w+)(?![`\w])", r"`\1`", text))


def _modules(name: str) -> Iterator[str]:
    """A module itself, or the modules of a package that say something, sorted."""
    folder = ROOT.joinpath(*name.split("."))
    if name == "recbole_adrrec" or not folder.is_dir():
        yield name
        return
    for file in sorted(folder.glob("*.py")):
        if file.stem != "__init__":
            yield f"{name}.{file.stem}"
