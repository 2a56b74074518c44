"""SmolLM2 under constraints: every text that counts obeys, at the last token too."""

import json
import re

import jax
import numpy as np
import pytest

from feynkac import inference, models
from feynkac.models.constraints import JsonSchema, Regex

from ..language.conftest import smollm2  # noqa: F401

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}, "people": {"type": "integer"}},
    "required": ["city", "people"],
}


@pytest.mark.slow
def test_texts_of_smollm2_obey(smollm2):  # noqa: F811
    prompt = smollm2.prompt([{"role": "user", "content": "Name a large city, as JSON."}])
    free = models.generation(smollm2, prompt, 16)
    sentence = r"[A-Z][a-z]+( [a-zA-Z]+){2,20}\."
    for constraint in (JsonSchema(CITY), Regex(sentence)):
        particles = inference.SMC(8).run(jax.random.key(0), free * constraint, throw=True)
        assert np.isfinite(np.asarray(particles.log_weights)).all()
        for reading in models.texts(smollm2, particles):
            assert reading.finished
            if isinstance(constraint, Regex):
                assert re.fullmatch(sentence, reading.text)
            else:
                record = json.loads(reading.text)
                assert isinstance(record["people"], int) and len(record["city"]) <= 30
    longest = constraint.over(models.Vocabulary.of(smollm2)).fewest_tokens
    with pytest.raises(ValueError, match=f"max_tokens of at least {longest + 1}"):
        constraint.over(models.Vocabulary.of(smollm2)).start(longest)
