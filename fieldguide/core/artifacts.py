"""What stages write for other stages to read, as types that writers and readers share.

A renamed key fails the type check, not the reader's eye. Each class is the content of one JSON file.
"""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fieldguide.core.errors import UserError
from fieldguide.core.files import read_json, write_json


class Part(BaseModel):
    """A part of an artifact; keys that it does not name are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Artifact(Part):
    """The whole content of a JSON file."""

    def write(self, target: Path) -> None:
        """Atomically; keys that were not set are left out, so that a figure that does not exist has no key."""
        write_json(target, self.model_dump(mode="json", exclude_unset=True, by_alias=True))

    @classmethod
    def read(cls, source: Path) -> Self:
        """Raises `UserError` for a file that is missing, damaged or of another version."""
        try:
            return cls.model_validate(read_json(source))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"{source}: {key}: {first['msg']}; make it again: dvc repro") from error
