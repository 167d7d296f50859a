"""How does a prompt become tokens? Read llm, then request, the scheduler, model_runner."""
