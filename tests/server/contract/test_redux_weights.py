"""The weights of an edit's pictures, as JSON and forms spell them."""

from __future__ import annotations

import pytest

from fluxserve.errors import InvalidRequest
from fluxserve.server.contract.multipart import Form
from fluxserve.server.contract.parameters import parse_parameters, parse_text_fields
from fluxserve.server.contract.schemas import EditParameters


def weights_of(fields: dict[str, object]) -> list[float] | None:
    return parse_parameters({"prompt": "a cat", **fields}, EditParameters).redux


@pytest.mark.parametrize(
    ("texts", "weights"),
    [
        ([("redux", "1")], [1.0]),
        ([("redux", "0.5")], [0.5]),
        ([("redux[]", "1"), ("redux[]", "0.5")], [1.0, 0.5]),
        ([("redux[0]", "1"), ("redux[1]", "0.5")], [1.0, 0.5]),
        ([("redux", "1"), ("redux", "0.5")], [1.0, 0.5]),
        ([("redux", "1, 0.5")], [1.0, 0.5]),
        ([("redux", "[1, 0.5]")], [1.0, 0.5]),
        ([], None),
    ],
)
def test_forms(texts: list[tuple[str, str]], weights: list[float] | None) -> None:
    fields = Form(texts=texts).fields()
    assert weights_of(parse_text_fields(fields, EditParameters)) == weights


@pytest.mark.parametrize(("given", "weights"), [(1, [1]), (0.5, [0.5]), ([1, 0.5], [1, 0.5]), (None, None)])
def test_json(given: object, weights: list[float] | None) -> None:
    assert weights_of({"redux": given}) == weights


@pytest.mark.parametrize("given", [5, -1, [0.5, 5], "much", ["1"], {"weight": 1}, [1.0] * 17, True, [[1.0]]])
def test_what_is_no_weight_is_refused(given: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        weights_of({"redux": given})
    assert refused.value.param == "redux"


def test_a_form_with_words_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        weights_of(parse_text_fields(Form(texts=[("redux", "1,much")]).fields(), EditParameters))
    assert refused.value.param == "redux"
