"""The money that is not tied to one stage: people, funding, assets, taxes."""
