"""Steps by Triton against steps by torch: same model, same chunks; on a GPU also decodes from a CUDA graph.

Without a GPU, `tests/engine/test_triton_interpreter.py` runs this file in a process of its own.
"""

from __future__ import annotations

import pytest
import torch

from tests.helpers.triton import ON_GPU, RUNS_HERE

TABLES = ([9, 4, 1], [3, 6], [2, 8], [5])
# (requests' numbers, tokens from, to) of each step: chunks, a mixture, two decodes, three decodes.
STEPS = (
    [(0, 0, 20), (1, 0, 17)],
    [(0, 20, 33), (1, 17, 18), (2, 0, 1)],
    [(0, 33, 34), (1, 18, 19)],
    [(0, 34, 35), (2, 1, 2), (3, 0, 1)],
)


@pytest.mark.skipif(not RUNS_HERE, reason="needs a GPU or Triton's interpreter")
@pytest.mark.parametrize("name", ["llama-tiny@dummy", "bloom-tiny@dummy", "gpt2-tiny@dummy"])
def test_the_logits_are_those_of_torch(name):
    from engine.batch import BatchChunk, SchedulerConfig
    from engine.inference.compatibility import require_servable
    from engine.inference.cuda_graphs import DeviceSteps
    from engine.inference.model_runner import ModelRunner
    from engine.models.load import load_model, shape_of

    device = "cuda" if ON_GPU else "cpu"
    config = SchedulerConfig(block_tokens=16, num_blocks=10)
    runners = []
    for where in ("cpu", device):
        model = load_model(name, "float32", where)
        require_servable(model, name)
        runners.append(ModelRunner(model, shape_of(model, name, "float32"), config, where, torch.float32))
    plain, other = runners
    if not ON_GPU:
        other.device_steps = DeviceSteps(
            other.model, other.cache, config, shape_of(other.model, name, "float32")
        )
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(500, (len(TABLES), 48), generator=random).tolist()
    for step in STEPS:
        chunks = [BatchChunk(tokens[i][a:b], a, TABLES[i]) for i, a, b in step]
        torch.testing.assert_close(other.run(chunks).cpu(), plain.run(chunks), atol=1e-4, rtol=1e-4)
