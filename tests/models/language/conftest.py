"""SmolLM2, loaded once a session; conftest files of other folders may import the fixture."""

import pytest

from feynkac.models.language import Llama, load


@pytest.fixture(scope="session")
def smollm2() -> Llama:
    return load("smollm2-135m-instruct")
