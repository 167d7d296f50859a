"""What knows nothing of models: files, JSON artefacts, the C compiler, this machine, memory."""
