"""One file per page, with its sections."""
