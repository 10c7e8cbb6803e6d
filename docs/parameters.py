"""docs/parameters.md from params.yaml and its types, so that it cannot be wrong: `python docs/parameters.py`."""

import re
import sys
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, TypeAdapter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fieldguide.core.params import Params, in_words  # noqa: E402 (the project is not installed)

KEY = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?: (?P<value>[^#]*?))? *(?:# (?P<meaning>.*))?$")
HEAD = """# Parameters

Every key of `params.yaml`: what it is by default, what it may be, what it does. Change one for a run with
`dvc exp run -S section.key=value`. Made by `python docs/parameters.py` from `params.yaml` and `fieldguide/core/params.py`.
"""


def main() -> None:
    (ROOT / "docs" / "parameters.md").write_text(page((ROOT / "params.yaml").read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """The reference as Markdown, from the text of params.yaml."""
    lines, path = [HEAD], []
    for line in text.splitlines():
        if not (found := KEY.match(line)):
            continue
        depth = len(found["indent"]) // 2
        path = [*path[:depth], found["key"]]
        meaning = (found["meaning"] or "").replace("|", "·")
        if depth == 0:
            lines += [
                f"\n## `{path[0]}`\n",
                f"{meaning}\n",
                "| key | default | may be | meaning |",
                "| --- | --- | --- | --- |",
            ]
        elif found["value"]:
            lines.append(f"| `{'.'.join(path[1:])}` | `{found['value']}` | {may_be(path)} | {meaning} |")
    return "\n".join(lines) + "\n"


def may_be(path: list[str]) -> str:
    """The values that a key takes, in words."""
    section: type[BaseModel] = Params
    for part in path[:-1]:
        section = section.model_fields[part].annotation
    field = section.model_fields[path[-1]]
    annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return in_words(TypeAdapter(annotation).json_schema()).replace("text in quotes", "text")


if __name__ == "__main__":
    main()
