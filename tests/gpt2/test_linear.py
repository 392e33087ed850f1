"""Products with packed weights are those of the weights as they are now."""

from __future__ import annotations

import pytest
import torch

import gpt2


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_generated_between_two_steps_of_training_follows_the_weights(tiny_model, fused):
    model = gpt2.GPT(tiny_model.config)
    model.load_state_dict(tiny_model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    idx, said = torch.randint(0, 256, (2, 8), generator=torch.Generator().manual_seed(0)), []
    for _ in range(3):
        with torch.inference_mode():
            said.append(model(idx)[0])
        with torch.no_grad():
            torch.testing.assert_close(said[-1], model(idx)[0])
        model(idx, idx)[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(said[0], said[1])
