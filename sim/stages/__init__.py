"""The stages of the company, each its own SimPy process: data, training, deployment, market; and finance."""
