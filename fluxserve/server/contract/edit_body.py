"""The body of an edit or a variation: a form, or JSON whose pictures are data: URLs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from fluxserve.server.contract.multipart import Form, parse_form
from fluxserve.server.contract.parameters import parse_parameters, parse_text_fields
from fluxserve.server.contract.pictures import Pictures, choose_pictures, take_references
from fluxserve.server.contract.schemas import EditParameters, ImageParameters, VariationParameters
from fluxserve.server.http.spool import Spool

EditSchema = type[EditParameters] | type[VariationParameters]


@dataclass(frozen=True)
class EditBody:
    """digest: of the content; boundaries of forms differ from try to try."""

    parameters: ImageParameters
    pictures: Pictures
    digest: str


def edit_of_document(document: dict[str, Any], digest: str, schema: EditSchema) -> EditBody:
    """What a JSON object asks for; its pictures are taken out of it.

    Raises:
        InvalidRequest: as `take_references`, `choose_pictures` and `parse_parameters` do.
    """
    pictures = choose_pictures(list(take_references(document)), with_mask=schema is EditParameters)
    return EditBody(parse_parameters(document, schema), pictures, digest)


def edit_of_form(body: Spool, content_type: str, schema: EditSchema) -> EditBody:
    """What a form asks for. Takes a tenth of a second for the largest.

    Raises:
        InvalidRequest: as `parse_form`, `choose_pictures` and `parse_parameters` do.
    """
    form = parse_form(body.chunks(), content_type)
    fields = parse_text_fields(form.fields(), schema)
    pictures = choose_pictures(form.files, with_mask=schema is EditParameters)
    return EditBody(parse_parameters(fields, schema), pictures, _digest(form))


def _digest(form: Form) -> str:
    digest = hashlib.sha256()
    for name, data in [*((name, text.encode()) for name, text in form.texts), *form.files]:
        digest.update(b"%d %d " % (len(name.encode()), len(data)) + name.encode())
        digest.update(data)
    return digest.hexdigest()
