"""What every request body outside /v1 has in common."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, model_validator

from cambium.core.errors import DataError
from cambium.serve.errors import NotUtf8


class Body(BaseModel):
    """A JSON object with known fields of exactly the stated types, and nothing but text in it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def is_text(cls, value: object) -> object:
        """Refuses half of a character, which a JSON escape can name and no store can hold.

        Raises:
            NotUtf8: there is one.
            DataError: nested too deeply.
        """
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
            texts = value.values() if isinstance(value, dict) else ()
            if any(isinstance(text, str) and "\0" in text for text in texts):
                raise DataError("a field holds the character NUL", mend="leave it out")
        except UnicodeEncodeError as error:
            raise NotUtf8("an escape in the body names half of a character",
                          mend="send UTF-8 text") from error  # fmt: skip
        except RecursionError as error:
            raise DataError("the body is nested too deeply", mend="send a flat object") from error
        return value
