"""The body of an edit or a variation: a form, or JSON whose pictures are data: URLs."""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxserve.server.contract.multipart import Form, parse_form
from fluxserve.server.contract.parameters import parse_parameters, parse_text_fields
from fluxserve.server.contract.pictures import Pictures, choose_pictures, take_references
from fluxserve.server.contract.schemas import EditParameters, ImageParameters, VariationParameters
from fluxserve.server.contract.strict_json import parse_json_object
from fluxserve.server.http.spool import Spool


@dataclass(frozen=True)
class EditBody:
    """digest: of the content; boundaries of forms differ from try to try."""

    parameters: ImageParameters
    pictures: Pictures
    digest: str


def parse_json_body(body: bytes) -> dict[str, Any]:
    """The object that `body` holds, with or without a byte order mark. Raises as `parse_json_object` does."""
    return parse_json_object(body.removeprefix(BOM_UTF8))


def parse_edit_body(
    body: Spool, content_type: str, schema: type[EditParameters] | type[VariationParameters]
) -> EditBody:
    """What a body of this content type asks for. Takes a tenth of a second for the largest.

    Raises:
        InvalidRequest: as parsing and `choose_pictures` do.
    """
    fields: Mapping[str, Any]
    if content_type.partition(";")[0].strip().lower() == "application/json":
        document, digest = _read_json(body.read())
        files, fields = list(take_references(document)), document
    else:
        form = parse_form(body.chunks(), content_type)
        files, fields, digest = form.files, parse_text_fields(form.fields(), schema), _digest(form)
    pictures = choose_pictures(files, with_mask=schema is EditParameters)
    return EditBody(parse_parameters(fields, schema), pictures, digest)


def _read_json(body: bytes) -> tuple[dict[str, Any], str]:
    """(the object, the digest of its bytes), which are let go of."""
    return parse_json_body(body), hashlib.sha256(body).hexdigest()


def _digest(form: Form) -> str:
    digest = hashlib.sha256()
    for name, data in [*((name, text.encode()) for name, text in form.texts), *form.files]:
        digest.update(b"%d %d " % (len(name.encode()), len(data)) + name.encode())
        digest.update(data)
    return digest.hexdigest()
