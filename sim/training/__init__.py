"""What does a training run take? Its physics: operations, memory, failures, hours, energy, dollars."""
